"""SelfReg where other frameworks look for it."""

"""The data sets, one a file: names of splits to cases, and cases to volumes."""

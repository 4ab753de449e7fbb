"""The same as `prepare.py`, for GlaS and MoNuSeg."""

import sys
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """See `prepare.main`."""
    from scripts.prepare import main

    return main(argv, prog="prepare_histology.py")


if __name__ == "__main__":
    import _path  # noqa: F401  puts the repository on sys.path

    sys.exit(main())

"""What every dataset hands out: errors as defects."""

from __future__ import annotations

from pathlib import Path

import pytest

from datasets.errors import Defect, defect_of

PATH = Path("a/b.nii")


@pytest.mark.parametrize(
    ("error", "what"),
    [
        (ValueError("a/b.nii: holds 3"), "holds 3"),
        (ValueError("holds a/b.nii: 3"), "holds a/b.nii: 3"),
        (ValueError("a/c.nii: holds 3"), "a/c.nii: holds 3"),
        (FileNotFoundError("a/b.nii: no such file"), "no such file"),
        (OSError(28, "No space left on device"), "No space left on device"),
        (PermissionError(13, "Permission denied", "a/b.nii"), "Permission denied"),
    ],
)
def test_an_error_of_a_file_is_a_defect_of_it(error: Exception, what: str) -> None:
    assert defect_of(PATH, error) == Defect(PATH, what) and str(defect_of(PATH, error)) == f"a/b.nii: {what}"

"""`python -m selfreg.integrations` prints the folder that nnU-Net finds its trainer in."""

from pathlib import Path

if __name__ == "__main__":
    print(Path(__file__).parent / "nnunet")

"""`python -m selfreg.integrations` prints the folder that nnU-Net finds its trainer in."""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.stdout.write(f"{Path(__file__).parent / 'nnunet'}\n")

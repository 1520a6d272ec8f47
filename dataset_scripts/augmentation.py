"""The name of `dataset_scripts.build_word_neighbours` in version 0.1; `python -m` with it still works."""

import sys

from dataset_scripts.build_word_neighbours import main

if __name__ == "__main__":
    sys.exit(main())

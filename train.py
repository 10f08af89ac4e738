"""Train a recurrent network: `python train.py model=gru task=imdb` is what `rnnzoo train` does, from a clone."""

import sys

from rnnzoo.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))

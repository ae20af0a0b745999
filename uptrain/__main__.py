"""`python -m gqa.uptrain`, the form that `accelerate launch -m` and torchrun start."""

from gqa.uptrain.cli import main

if __name__ == "__main__":
    main()

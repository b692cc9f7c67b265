"""`python -m diffusers_stale.cli`, where the command itself is not on the path."""

from diffusers_stale.cli import main


if __name__ == "__main__":
    main()

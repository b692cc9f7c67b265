"""The `stale-diffusion` command: wiring only. What it says about options is here, what they mean is elsewhere.

Heavy imports are inside the commands, after their options have been checked. Exit codes: 0 done; 1 something that the
user can put right, told in one line on stderr; 2 a wrong way of calling; 130 interrupted.
"""

# Each adds its commands to the application, in this order.
from diffusers_stale.cli import evaluation, generation, inspection, pictures, science  # noqa: F401
from diffusers_stale.cli.app import app


def main() -> None:
    app(prog_name="stale-diffusion")

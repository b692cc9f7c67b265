"""How well movies do what their prompts ask: alignment, parallax, motion, and the reports that say so."""

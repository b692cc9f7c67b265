"""The Space: a page and an API around `StaleDiffusionPipeline`. `space/app.py` starts it."""

"""How the page is served: options of Gradio's server that matter to visitors' safety and to the machine's."""

import gradio as gr
from starlette.middleware import Middleware

from stale_space import look
from stale_space.front_door import FrontDoor
from stale_space.results import Results
from stale_space.settings import Limits


SESSIONS = 200
"""Visitors whose state is remembered; the longest unseen are forgotten first."""


def launch(
    page: gr.Blocks,
    results: Results,
    limits: Limits,
    host: str | None = None,
    port: int | None = None,
    open_browser: bool = False,
    wait: bool = True,
) -> str:
    """Serves `page` until interrupted, or in a thread if not `wait`; returns its address."""
    door = Middleware(
        FrontDoor, body_bytes=limits.body_bytes, upload_bytes=limits.upload_bytes, is_full=results.is_full
    )
    _, address, _ = page.launch(
        server_name=host,
        server_port=port,
        inbrowser=open_browser,
        prevent_thread_lock=not wait,
        quiet=not wait,
        share=False,
        show_error=False,
        max_file_size=limits.upload_bytes,
        state_session_capacity=SESSIONS,
        footer_links=["api"],
        run_history=False,
        enable_monitoring=False,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        theme=look.THEME,
        css=look.STYLE,
        head=look.HEAD,
        app_kwargs={"middleware": [door]},
    )
    return address

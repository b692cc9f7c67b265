"""How the page looks: theme, styles, and the small pieces of HTML and JavaScript that Gradio has no component for.

Everything comes from this server: fonts are the system's, pictures are data URLs.
"""

from html import escape
from pathlib import Path

import gradio as gr

from stale_space.generation import Progress
from stale_space.settings import FIELDS


STYLE = (Path(__file__).parent / "style.css").read_text(encoding="utf-8")

THEME = gr.themes.Base(
    primary_hue=gr.themes.Color(
        c50="#fdf4f1",
        c100="#fbe6df",
        c200="#f6cdc0",
        c300="#eea894",
        c400="#e27d62",
        c500="#cf5a3c",
        c600="#b4452a",
        c700="#953722",
        c800="#7a3020",
        c900="#652b1f",
        c950="#37140d",
    ),
    secondary_hue="stone",
    neutral_hue="stone",
    radius_size="lg",
    font=("system-ui", "-apple-system", "Segoe UI", "Roboto", "Noto Sans", "sans-serif"),
    font_mono=("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace"),
).set(
    body_background_fill="#faf8f5",
    body_background_fill_dark="#151413",
    block_background_fill="*background_fill_primary",
    block_background_fill_dark="#1e1c1b",
    block_border_width="1px",
    block_shadow="none",
    block_label_background_fill="*background_fill_primary",
    block_label_background_fill_dark="#1e1c1b",
    block_label_border_width="0px",
    block_label_text_weight="500",
    # Gradio's own greys are too faint to read: these have a contrast of 4.5 and more on what they stand on.
    body_text_color_subdued="*neutral_600",
    body_text_color_subdued_dark="*neutral_400",
    block_info_text_color="*neutral_600",
    block_info_text_color_dark="*neutral_400",
    block_label_text_color="*neutral_600",
    block_label_text_color_dark="*neutral_300",
    block_title_text_color="*neutral_600",
    block_title_text_color_dark="*neutral_300",
    input_background_fill="white",
    input_background_fill_dark="#292524",
    input_border_color="*neutral_300",
    input_border_color_dark="*neutral_600",
    input_border_width="1px",
    input_placeholder_color="*neutral_500",
    input_placeholder_color_dark="*neutral_400",
    button_large_text_weight="600",
    button_medium_text_weight="500",
    button_small_text_weight="500",
    button_secondary_background_fill="white",
    button_secondary_background_fill_dark="#292524",
    button_secondary_border_color="*neutral_300",
    button_secondary_border_color_dark="*neutral_600",
    button_border_width="1px",
    button_primary_background_fill="*primary_600",
    button_primary_background_fill_hover="*primary_700",
    button_primary_background_fill_dark="*primary_600",
    button_primary_background_fill_hover_dark="*primary_700",
    button_primary_text_color="white",
    button_primary_text_color_dark="white",
)

HEAD = """
<meta name="description" content="Type a sentence and get a light-field movie: move your head and look around in it.">
<meta name="color-scheme" content="light dark">
"""

BARN = """
<svg viewBox="30 12 60 64" aria-hidden="true"><g fill="none" stroke="currentColor" stroke-width="3"
 stroke-linejoin="round" stroke-linecap="round"><path d="M38 70V36l22-16 22 16v34z"/><path d="M34 39l26-19 26 19"/>
<path d="M52 70V48h16v22M52 48l16 22M68 48L52 70"/></g></svg>
"""

TITLE = f"""
<header class="title">{BARN}
<h1>Stale Diffusion</h1>
<p>Type a sentence. Move your head.</p>
</header>
"""


def empty(text: str, hint: str) -> str:
    """The stage before anything was asked for."""
    return f'<div class="stage empty">{BARN}<p>{escape(text)}</p><p class="hint">{escape(hint)}</p></div>'


NO_MOVIE = empty(
    "Your movie will play here.", "It is seen from a whole grid of cameras, so that you can look around in it."
)
NO_UPLOAD = empty("What you bring will be shown here.", "A quilt, a light field, or a video that becomes one.")


def waiting(text: str) -> str:
    """The stage while there is nothing to see yet."""
    return f'<div class="stage empty" role="status"><p>{escape(text)}</p></div>'


def done(text: str) -> str:
    """The stage when something else shows the result."""
    return f'<div class="stage done" role="status"><p>{escape(text)}</p></div>'


def progress(news: Progress, what: str = "") -> str:
    """The stage while a movie is being denoised: what it will be, and how far it is."""
    label = f"{what}step {news.step} of {news.steps}"
    left = news.seconds / news.step * (news.steps - news.step)
    return f"""
<div class="stage working">
<img src="{news.preview}" alt="Preview of the middle view">
<div class="bar"><progress max="{news.steps}" value="{news.step}" aria-label="Denoising"></progress>
<span role="status">{escape(label[:1].upper() + label[1:])}<span class="left">, about {left:.0f} s left</span></span>
</div>
</div>
"""


def viewer(file: Path, caption: str = "") -> str:
    """The stage with the interactive viewer in `file`: fetched by `SHOW_VIEWER`, so that pages stay small."""
    return f"""
<div class="stage viewer">
<iframe title="Light-field movie: drag to look around" allow="fullscreen; gyroscope; accelerometer"
 sandbox="allow-scripts allow-downloads" data-source="gradio_api/file={escape(str(file))}"></iframe>
{f'<p class="caption">{caption}</p>' if caption else ""}
</div>
"""


def welcome(file: Path, prompt: str) -> str:
    """The stage with a movie that was made earlier, until there is an own one."""
    return viewer(file, f"<q>{escape(prompt)}</q> Yours will play here.")


# On a phone the stage is below the settings: it is scrolled to once there is something to see in it.
SHOW_VIEWER = """
const show = async () => {
    const first = element.querySelector('progress[value="1"]');
    if (first && element.getBoundingClientRect().top > 0.7 * window.innerHeight)
        element.scrollIntoView({behavior: 'smooth', block: 'center'});
    const frame = element.querySelector('iframe[data-source]');
    if (!frame || frame.srcdoc) return;
    const answer = await fetch(frame.dataset.source);
    frame.srcdoc = answer.ok ? await answer.text()
        : '<p style="font:16px system-ui;color:#888;text-align:center">This movie is no longer there.</p>';
};
watch('value', show);
show();
"""

SHARE = f"""
(...values) => {{
    const names = {list(FIELDS)};
    const address = new URL(window.location.pathname, window.location.origin);
    names.forEach((name, index) => {{
        const value = values[index];
        address.searchParams.set(name, typeof value === 'boolean' ? Number(value) : value);
    }});
    window.history.replaceState(null, '', address);
    if (navigator.clipboard) navigator.clipboard.writeText(address.href).catch(() => null);
    return address.href;
}}
"""
"""Makes the link of all fields, puts it into the address bar and the clipboard, and returns it."""


READ = "() => { document.body.dataset.link = 'read'; }"
"""Says to other programs in the browser that the settings of the link have been taken over."""


def start_download(element_id: str) -> str:
    """JavaScript that clicks the link of the download button `element_id`, once it has one."""
    return f"""
async () => {{
    await new Promise((done) => setTimeout(done, 400));
    const place = document.getElementById({element_id!r});
    const link = place && (place.matches('a') ? place : place.querySelector('a') || place.closest('a'));
    (link || place).click();
}}
"""

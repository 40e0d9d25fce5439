"""The page: where things stand, and what happens when one uses them."""

from __future__ import annotations

import html
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import gradio as gr

from hf_any3d.data.files import supported_file_types
from hf_any3d.demo.conversation import LONGEST_QUESTION, Conversation
from hf_any3d.demo.examples import ExampleShapes
from hf_any3d.demo.sliders import SLIDERS, generation_settings
from hf_any3d.demo.uploads import AT_ONCE, LARGEST_UPLOAD, warm_up
from hf_any3d.visualization.web_page import clouds_page

# Uploads are deleted when they are this old, in seconds.
UPLOADS_KEPT = 3600
# Requests that wait for their turn; further ones are turned away.
MOST_WAITING = 100
# Whoever closed the page may come back to the conversation for so long, in seconds.
CONVERSATIONS_KEPT = 3600

# Fonts that every machine has, so that none is fetched.
THEME = gr.themes.Default(
    primary_hue="blue", font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
)
STYLE = """
#view iframe { display: block; width: 100%; height: 480px; border: 1px solid var(--border-color-primary);
  border-radius: 8px; }
#view .html-container, #note .html-container, #notice .html-container { padding: 0; }
#note p, #notice p { margin: 0; font-size: 0.9em; color: var(--body-text-color); }
#note p.error, #notice p.error { color: #b42318; font-weight: 600; }
#ask { align-items: center; }
footer { display: none !important; }
"""
TERMS = """
Files may be {types}. The model is given a fixed number of points: larger clouds are sampled, smaller ones repeat some
points, meshes are sampled on their surface. Without colours it is given black.

This page is for research. The model may say what is wrong, and what offends; do not rely on it. Questions and files
are for the machine that shows this page: files are deleted within hours, conversations are not stored. Upload only
what you may pass on. The weights stand under the licences that their model card names, the shapes under those of
their makers.
"""

Words = list[dict[str, Any]]
# The view, the line below it, the chat and the line below that.
Shown = tuple[Any, str, Any, Any]


class DemoPage:
    """The page around a model. Each visitor has a conversation of their own; answers are given one at a time.

    Args:
        name: What the model is called.
        examples: The shapes to choose from.
        new_conversation: Makes a visitor's conversation.
    """

    def __init__(self, name: str, examples: ExampleShapes, new_conversation: Callable[[], Conversation]):
        self.name, self.examples, self.new_conversation = name, examples, new_conversation

    def build(self) -> gr.Blocks:
        """Lay the page out."""
        title = f"Talk about point clouds: {self.name}"
        with gr.Blocks(title=title, analytics_enabled=False, delete_cache=(UPLOADS_KEPT, UPLOADS_KEPT)) as page:
            conversation = gr.State(None, time_to_live=CONVERSATIONS_KEPT)
            gr.Markdown(f"## Talk about point clouds\nwith {html.escape(self.name)}")
            with gr.Row():
                with gr.Column(scale=5):
                    example, file, view, note = self._shapes()
                with gr.Column(scale=6):
                    chat, question, send, stop, restart = _talk()
                    notice = gr.HTML(elem_id="notice")
                    sliders = _sliders()
            with gr.Accordion("Files and terms of use", open=False):
                gr.Markdown(TERMS.format(types=", ".join(supported_file_types())))

            # What needs the model waits in one line; the others' answers come first.
            in_turn = {"concurrency_id": "model", "concurrency_limit": 1, "api_visibility": "private"}
            at_once = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
            shown = [view, note, chat, notice]
            page.load(self._begin, outputs=[conversation, *shown], show_progress="hidden", **in_turn)
            example.input(_stop, conversation, **at_once).then(
                self._open_example, [conversation, example], shown, show_progress_on=view, **in_turn
            )
            # Files are read apart from the model, so that a slow one keeps nobody's answers waiting.
            file.upload(_stop, conversation, **at_once).then(
                _read_upload,
                [conversation, file],
                show_progress_on=view,
                concurrency_id="files",
                concurrency_limit=AT_ONCE,
                api_visibility="private",
            ).then(_open_upload, [conversation, file], [example, *shown], show_progress_on=view, **in_turn)
            said = gr.on(
                [question.submit, send.click],
                _take,
                [conversation, question, chat],
                [chat, question, send, stop],
                trigger_mode="once",
                **at_once,
            )
            said.then(
                _answer, [conversation, chat, *sliders], [chat, question, notice], show_progress="hidden", **in_turn
            ).then(lambda: _buttons(False), outputs=[send, stop], **at_once)
            stop.click(_stop, conversation, **at_once)
            gr.on([restart.click, chat.clear], _stop, conversation, **at_once).then(
                _restart, conversation, [chat, notice], show_progress="hidden", **in_turn
            )
        return page

    def open(self, host: str = "127.0.0.1", port: int | None = None, share: bool = False) -> gr.Blocks:
        """Show the page, from a thread of its own.

        Args:
            host: Address to listen at.
            port: Port to listen at; a free one from 7860 on if left out.
            share: Whether to show it to everyone, through gradio's servers.

        Returns:
            The page, with `local_url` and `share_url`; `block_thread()` waits for Ctrl-C, `close()` ends it.

        Raises:
            OSError: If the port is taken.
        """
        page = self.build()
        page.queue(max_size=MOST_WAITING)
        warm_up()
        page.launch(
            server_name=host,
            server_port=port,
            share=share,
            theme=THEME,
            css=STYLE,
            footer_links=[],
            ssr_mode=False,
            quiet=True,
            max_file_size=LARGEST_UPLOAD,
            prevent_thread_lock=True,
        )
        return page

    def _shapes(self) -> tuple[gr.Dropdown, gr.UploadButton, gr.HTML, gr.HTML]:
        names = self.examples.names
        example = gr.Dropdown(
            names,
            value=names[0] if names else None,
            label="Shape",
            allow_custom_value=True,
            visible=bool(names),
            elem_id="example",
        )
        file = gr.UploadButton("Upload a point cloud or a mesh", size="md", elem_id="file")
        view = gr.HTML(elem_id="view")
        return example, file, view, gr.HTML(elem_id="note")

    def _begin(self) -> tuple[Any, ...]:
        conversation = self.new_conversation()
        if not self.examples.names:
            return conversation, "", _line("Upload a file to talk about."), [], ""
        return conversation, *self._open_example(conversation, self.examples.names[0])

    def _open_example(self, conversation: Conversation, name: str | None) -> Shown:
        return _open(conversation, lambda: self.examples.get(name or ""))


def _talk() -> tuple[gr.Chatbot, gr.Textbox, gr.Button, gr.Button, gr.Button]:
    chat = gr.Chatbot(
        label="Conversation",
        height=420,
        elem_id="chat",
        buttons=["copy_all"],
        # Models write text; what looks like markup in it is none.
        render_markdown=False,
        feedback_options=None,
        placeholder="Ask something about the shape.",
    )
    with gr.Row(elem_id="ask"):
        question = gr.Textbox(
            placeholder="What is this?",
            show_label=False,
            container=False,
            scale=6,
            elem_id="question",
            max_length=LONGEST_QUESTION,
        )
        send = gr.Button("Send", variant="primary", min_width=80, elem_id="send")
        stop = gr.Button("Stop", variant="stop", min_width=80, visible=False, elem_id="stop")
        restart = gr.Button("Restart", min_width=80, elem_id="restart")
    return chat, question, send, stop, restart


def _sliders() -> list[gr.Slider]:
    with gr.Group():
        return [gr.Slider(s.low, s.high, s.default, step=s.step, label=s.label, buttons=[]) for s in SLIDERS]


def _read_upload(conversation: Conversation, path: str) -> None:
    conversation.read(path)


def _open_upload(conversation: Conversation, path: str) -> tuple[Any, ...]:
    # The list of examples is left without a choice, so that each can be chosen again.
    return None, *_open(conversation, lambda: path)


def _open(conversation: Conversation, source: Callable[[], Any]) -> Shown:
    """What is seen of a shape; where it cannot be read, only the line below the view changes."""
    try:
        shape = conversation.open(source())
    except (ValueError, OSError, ImportError) as error:
        return gr.skip(), _line(str(error), is_error=True), gr.skip(), gr.skip()
    up_axis = conversation.pipe.processor.feature_extractor.up_axis
    text = clouds_page([shape.points], up_axis=up_axis, title="shape")
    # The frame keeps the page's own script apart from the demo.
    frame = f'<iframe title="3D view" sandbox="allow-scripts" srcdoc="{html.escape(text)}"></iframe>'
    return frame, _line(f"{shape.note} Drag to turn, wheel to zoom."), [], ""


def _take(conversation: Conversation, question: str, chat: Words) -> tuple[Words, str, Any, Any]:
    """Move the question into the chat, and a button to stop the answer to the place of the one to send."""
    conversation.ready()
    question = question[: LONGEST_QUESTION + 1]  # one more is told to be too long
    if not question.strip():
        return chat, "", *_buttons(False)
    return [*chat, {"role": "user", "content": question.strip()}], "", *_buttons(True)


def _answer(conversation: Conversation, chat: Words, *values: float) -> Iterator[tuple[Words, Any, Any]]:
    """The chat with the answer as it grows; a question that cannot be answered goes back to where it was written."""
    if not chat or chat[-1]["role"] != "user":
        yield chat, gr.skip(), gr.skip()
        return
    question, settings = _text(chat[-1]), generation_settings(*values)
    told = partial(_with_answer, chat)
    try:
        forgotten = conversation.make_room(question, settings["max_new_tokens"])
        answer = ""
        yield told("…"), gr.skip(), ""
        for answer in conversation.ask(question, **settings):
            yield told(answer), gr.skip(), gr.skip()
    except (ValueError, OSError) as error:
        yield chat[:-1], question, _line(str(error), is_error=True)
        return
    notes = []
    if conversation.was_stopped:
        notes.append("Stopped; the model knows what it said so far.")
    if forgotten:
        turns = "question was" if forgotten == 1 else f"{forgotten} questions were"
        notes.append(f"The oldest {turns} forgotten: the model is given {conversation.context} tokens at most.")
    yield told(answer or "(no answer)"), gr.skip(), _line(" ".join(notes))


def _stop(conversation: Conversation) -> None:
    conversation.stop()


def _restart(conversation: Conversation) -> tuple[Words, str]:
    conversation.restart()
    return [], ""


def _with_answer(chat: Words, answer: str) -> Words:
    return [*chat, {"role": "assistant", "content": answer}]


def _text(message: dict[str, Any]) -> str:
    content = message["content"]
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


def _buttons(is_answering: bool) -> tuple[Any, Any]:
    return gr.update(visible=not is_answering), gr.update(visible=is_answering)


def _line(text: str, is_error: bool = False) -> str:
    if not text:
        return ""
    kind = ' class="error" role="alert"' if is_error else ""
    return f"<p{kind}>{html.escape(' '.join(text.split()))}</p>"

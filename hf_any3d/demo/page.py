"""The page: its layout, its events, its example shapes, and the settings of its sliders."""

from __future__ import annotations

import html
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import gradio as gr
from gradio.themes import Default as DefaultTheme
from starlette.middleware import Middleware

from hf_any3d.chat import PUBLISHED_GENERATION
from hf_any3d.data.example_shapes import ExampleShapes
from hf_any3d.data.files import supported_file_types
from hf_any3d.data.files.isolated_reading import warm_up
from hf_any3d.demo.conversation import LONGEST_QUESTION, Conversation
from hf_any3d.demo.uploads import AT_ONCE, LARGEST_UPLOAD
from hf_any3d.utils.http_hosts import HostMiddleware, Hosts
from hf_any3d.visualization.html_pages import html_fragment
from hf_any3d.visualization.viewer import clouds_page

UPLOADS_KEPT = 3600  # seconds until uploads are deleted
CONVERSATIONS_KEPT = 3600  # seconds until the conversation of a closed page is deleted
MOST_WAITING = 100  # queued requests; further ones are rejected
# System fonts, so that none is downloaded.
THEME = DefaultTheme(primary_hue="blue", font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
STYLE = """
#view iframe { display: block; width: 100%; height: min(480px, 50vh); border: 1px solid var(--border-color-primary);
  border-radius: 8px; }
#view .html-container, #note .html-container, #notice .html-container { padding: 0; }
@media (max-width: 640px) { #view iframe { height: 34vh; } }
#note p, #notice p { margin: 0; font-size: 0.9em; color: var(--body-text-color); }
#note p.error, #notice p.error { color: #b42318; font-weight: 600; }
#ask { align-items: center; }
#example input, #category input { text-overflow: ellipsis; padding-right: 2.4em !important; }
#answer h3 { margin: 0 0 8px; font-size: 1em; }
#answer ol { list-style: none; margin: 0; padding: 0; }
#answer li { display: grid; grid-template-columns: 1fr auto; gap: 1px 12px; padding: 5px 0; overflow-wrap: anywhere; }
#answer li b { font-variant-numeric: tabular-nums; font-weight: 600; }
#answer li i { grid-column: 1 / -1; display: block; height: 7px; min-width: 2px; border-radius: 4px;
  background: var(--color-accent); }
#answer li:first-child span { font-weight: 600; }
footer { display: none !important; }
"""
GUIDES = "https://github.com/hf-any3d/hf_any3d/blob/main/docs/guides.md"
TERMS = """
File types: {types}. The model gets a fixed number of points: larger clouds are sampled, smaller ones repeat some
points, meshes are sampled on their surface. Shapes without colors are black.

This page is for research. Answers may be wrong or offensive; do not rely on them. Questions and files are sent to the
machine that runs this page: files are deleted within hours, conversations are not stored. Upload only what you may
share. The weights have the licenses named in their model card, the shapes those of their authors.
"""
Chat = list[dict[str, Any]]


class Slider(NamedTuple):
    """An argument of `generate` between two bounds."""

    name: str
    label: str
    low: float
    high: float
    step: float
    default: float


SLIDERS = (
    Slider("max_new_tokens", "Maximum length of an answer, in tokens", 10, 200, 1, 60),
    Slider("num_beams", "Beams", 1, 10, 1, 1),
    Slider("temperature", "Temperature", 0.1, 2.0, 0.1, 0.2),
)
"""The sliders of the released demo; its other settings are fixed, see `PUBLISHED_GENERATION`."""


class Page(ABC):
    """A page where visitors choose or upload a shape, each with a state of their own, which `new_visitor` makes.

    `show` opens a shape and returns updates of the view, the line below it and what else there is.
    """

    nothing: tuple[Any, ...] = ("",)
    """What else there is before a shape is opened."""

    def __init__(self, name: str, examples: ExampleShapes, new_visitor: Callable[[], Any]):
        self.name = name
        self.examples = examples
        self.new_visitor = new_visitor
        self.first: str | None = next(iter(examples.names), None)

    @contextmanager
    def frame(self, heading: str) -> Iterator[tuple[gr.Blocks, gr.State]]:
        """Build the page around its inputs and outputs; yields it with the state of a visitor."""
        title = f"{heading} · {self.name}"
        # Uploads are looked through at this interval, and deleted at this age.
        with gr.Blocks(title=title, analytics_enabled=False, delete_cache=(UPLOADS_KEPT, UPLOADS_KEPT)) as page:
            # Nothing at first: each visitor's state is made when the page is opened.
            visitor = gr.State(None, time_to_live=CONVERSATIONS_KEPT)
            gr.Markdown(f"## {heading}\nwith {html.escape(self.name)} · [guides]({GUIDES})")
            yield page, visitor
            with gr.Accordion("Files and terms of use", open=False):
                gr.Markdown(TERMS.format(types=", ".join(supported_file_types())))

    @abstractmethod
    def build(self) -> gr.Blocks:
        """Build the page."""

    @abstractmethod
    def show(self, visitor: Any, source: Callable[[], Any], *asked: Any) -> tuple[Any, ...]:
        """Open a shape; after an error only the line below the view changes."""

    def begin(self, *asked: Any) -> tuple[Any, ...]:
        """Open the first example for a new visitor."""
        visitor = self.new_visitor()
        if self.first is None:
            return visitor, "", error_or_note("Upload a file to start."), *self.nothing
        return visitor, *self.open_example(visitor, self.first, *asked)

    def open_example(self, visitor: Any, name: str | None, *asked: Any) -> tuple[Any, ...]:
        """Open an example."""
        # Looked up by `show`, which tells errors on the page
        return self.show(visitor, lambda: self.examples.get(name or ""), *asked)

    def open_upload(self, visitor: Any, path: str, *asked: Any) -> tuple[Any, ...]:
        """Open a file, and clear the selection of the example, so that each can be chosen again."""
        return None, *self.show(visitor, lambda: path, *asked)

    def open(
        self, host: str = "127.0.0.1", port: int | None = None, share: bool = False, hosts: Hosts | None = None
    ) -> gr.Blocks:
        """Serve the page from a thread, by default on a free port from 7860 on; see `gradio.Blocks.launch`.

        `hosts` are the names of this server, by default those of `host`; a page that is shared answers to all.
        """
        page = self.build()
        page.queue(max_size=MOST_WAITING)
        # Before the first visitor, since readers are forked from a process that has to import everything
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
            # gradio compares a page's origin with the host that the browser names, which may be a foreign one.
            app_kwargs={} if share else {"middleware": [Middleware(HostMiddleware, hosts=hosts or Hosts(host))]},
        )
        return page


class DemoPage(Page):
    """The page of a chat model. Each visitor has a conversation of their own; answers are generated one at a time."""

    nothing = ([], "")

    def build(self) -> gr.Blocks:
        """Build the page."""
        with self.frame("Talk about point clouds") as (page, conversation):
            with gr.Row():
                with gr.Column(scale=5):
                    example, file, view, note = shape_column(self.examples, self.first)
                with gr.Column(scale=6):
                    chat, question, send, stop, restart = _chat_column()
                    notice = gr.HTML(elem_id="notice")
                    with gr.Group():
                        sliders = [
                            gr.Slider(s.low, s.high, s.default, step=s.step, label=s.label, buttons=[])
                            for s in SLIDERS
                        ]

            # Requests to the model share one queue.
            in_turn = {"concurrency_id": "model", "concurrency_limit": 1, "api_visibility": "private"}
            # What needs no model does not wait for it.
            at_once = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
            # What opening a shape changes, in the order of what `show` returns
            shown = [view, note, chat, notice]
            page.load(self.begin, outputs=[conversation, *shown], show_progress="hidden", **in_turn)
            # An answer about the shape before would otherwise hold the model.
            example.input(Conversation.stop, conversation, **at_once).then(
                self.open_example, [conversation, example], shown, show_progress_on=view, **in_turn
            )
            # Files are read in another queue, so that slow ones do not delay answers.
            file.upload(Conversation.stop, conversation, **at_once).then(
                Conversation.read,
                [conversation, file],
                show_progress_on=view,
                concurrency_id="files",
                concurrency_limit=AT_ONCE,
                api_visibility="private",
            ).then(self.open_upload, [conversation, file], [example, *shown], show_progress_on=view, **in_turn)
            submitted = gr.on(
                [question.submit, send.click],
                _submit,
                [conversation, question, chat],
                [chat, question, send, stop],
                trigger_mode="once",
                **at_once,
            )
            # The last step runs after an error, too, so that the send button comes back.
            submitted.then(
                _answer, [conversation, chat, *sliders], [chat, question, notice], show_progress="hidden", **in_turn
            ).then(lambda: _buttons(False), outputs=[send, stop], **at_once)
            stop.click(Conversation.stop, conversation, **at_once)
            gr.on([restart.click, chat.clear], Conversation.stop, conversation, **at_once).then(
                Conversation.restart, conversation, show_progress="hidden", **in_turn
            ).then(lambda: ([], ""), outputs=[chat, notice], **at_once)
        return page

    def show(self, visitor: Conversation, source: Callable[[], Any], *asked: Any) -> tuple[Any, ...]:
        """Open a shape, and clear the chat; after an error only the line below the view changes."""
        try:
            shape = visitor.open(source())
        except (ValueError, OSError, ImportError) as error:
            # View and chat stay as they are.
            return gr.skip(), error_or_note(str(error), is_error=True), gr.skip(), gr.skip()
        up_axis = visitor.pipe.processor.feature_extractor.up_axis
        text = clouds_page([shape.points], up_axis=up_axis, title="shape")
        return view_frame(text), error_or_note(f"{shape.note} Drag to turn, wheel to zoom."), [], ""


def shape_column(examples: ExampleShapes, first: str | None) -> tuple[gr.Dropdown, gr.UploadButton, gr.HTML, gr.HTML]:
    """Build the part of a page that chooses and shows a shape: example, upload, view and the line below it.

    `first` is the example that is chosen at first.
    """
    names = examples.names
    # Names beyond those in the list may be entered.
    example = gr.Dropdown(
        names,
        value=first,
        label="Shape",
        allow_custom_value=True,
        visible=bool(names),
        elem_id="example",
    )
    file = gr.UploadButton("Upload a point cloud or a mesh", size="md", elem_id="file")
    view = gr.HTML(elem_id="view")
    return example, file, view, gr.HTML(elem_id="note")


def view_frame(page: str) -> str:
    """Return a sandboxed frame with a page of the viewer, which separates its script from the demo."""
    return html_fragment("frame", page)


def _chat_column() -> tuple[gr.Chatbot, gr.Textbox, gr.Button, gr.Button, gr.Button]:
    chat = gr.Chatbot(
        label="Conversation",
        height=420,
        elem_id="chat",
        buttons=["copy_all"],
        # Answers are plain text.
        render_markdown=False,
        feedback_options=None,
        placeholder="Ask a question about the shape.",
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


def _submit(conversation: Conversation, question: str, chat: Chat) -> tuple[Chat, str, Any, Any]:
    """Move the question into the chat, and replace the send button by the stop button."""
    conversation.ready()
    # The page's own limit can be bypassed by a program.
    question = question[: LONGEST_QUESTION + 1]  # enough to be refused as too long
    if not question.strip():
        return chat, "", *_buttons(False)
    return [*chat, {"role": "user", "content": question.strip()}], "", *_buttons(True)


def _answer(conversation: Conversation, chat: Chat, *values: float) -> Iterator[tuple[Chat, Any, Any]]:
    """Yield the chat with the growing answer; a question without an answer returns to the text box."""
    # The text box was empty, so that no question was added.
    if not chat or chat[-1]["role"] != "user":
        yield chat, gr.skip(), gr.skip()
        return
    # Sliders may give floats where `generate` needs whole numbers.
    chosen = {slider.name: type(slider.default)(value) for slider, value in zip(SLIDERS, values, strict=True)}
    # What has no slider stays as in the released demo.
    content = chat[-1]["content"]
    # Gradio may pass a text as a list of parts.
    question = content if isinstance(content, str) else "".join(part["text"] for part in content)
    settings = {**PUBLISHED_GENERATION["demo"], **chosen}

    def with_answer(answer: str) -> Chat:
        return [*chat, {"role": "assistant", "content": answer}]

    try:
        forgotten = conversation.make_room(question, settings["max_new_tokens"])
        answer = ""
        # A sign of work until the first words come
        yield with_answer("…"), gr.skip(), ""
        for answer in conversation.ask(question, **settings):
            yield with_answer(answer), gr.skip(), gr.skip()
    except (ValueError, OSError) as error:
        yield chat[:-1], question, error_or_note(str(error), is_error=True)
        return
    notes = []
    if conversation.was_stopped:
        notes.append("Stopped; the unfinished answer stays in the conversation.")
    if forgotten:
        turns = "question was" if forgotten == 1 else f"{forgotten} questions were"
        notes.append(f"The oldest {turns} dropped: the model takes at most {conversation.context} tokens.")
    yield with_answer(answer or "(no answer)"), gr.skip(), error_or_note(" ".join(notes))


def _buttons(is_answering: bool) -> tuple[Any, Any]:
    return gr.update(visible=not is_answering), gr.update(visible=is_answering)


def error_or_note(text: str, is_error: bool = False) -> str:
    """Return a line for the page; the text is escaped."""
    return html_fragment("line", " ".join(text.split()), is_error) if text else ""

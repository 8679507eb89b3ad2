"""Chat templates in jinja: the one that describes our ChatML, and those that come with imported models."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from groundling.data.conversations import Message, ToolCall
from groundling.data.tokenizers.foreign import beside, token_name
from groundling.storage.safe_read import LARGEST_TOKENIZER, read_bytes

if TYPE_CHECKING:
    import jinja2

_CHATML = """\
{%- for message in messages %}
{%- set content = message.content or '' %}
{%- if content is not string %}{% set content = content | map(attribute='text') | join %}{% endif %}
{{- '<|im_start|>' + message.role + '\\n' }}
{%- if message.role == 'assistant' %}
{%- generation %}
{{- content }}
{%- for call in message.tool_calls or [] %}
{%- set call = call.function or call %}
{%- set arguments = call.arguments %}
{%- if call.name == 'calculator' and arguments is string %}
{{- raise_exception("Give the calculator's arguments as an object, not as a string.") }}
{%- endif %}
{%- set expression = arguments.expression if arguments is mapping and arguments | length == 1 %}
{%- if call.name == 'calculator' and expression is string and not expression.startswith('{') %}
{{- '<tool_call>' + expression + '</tool_call>' }}
{%- else %}
{{- '<tool_call>{"name": ' + call.name | tojson + ', "arguments": ' }}
{{- arguments if arguments is string else arguments | tojson }}
{{- '}</tool_call>' }}
{%- endif %}
{%- endfor %}
{{- '<|im_end|>' }}
{%- endgeneration %}
{%- else %}
{{- content + '<|im_end|>' }}
{%- endif %}
{{- NEWLINE }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}
"""


def chatml_template(start: str = "", newline: bool = True) -> str:
    """Our form of ChatML as a chat template, after the token `start`. `newline`: one after each turn."""
    begin = "{{- " + json.dumps(start) + " }}\n" if start else ""
    return begin + _CHATML.replace("NEWLINE", r"'\n'" if newline else "''").rstrip("\n")


def read_template(folder: Path) -> tuple[str, dict[str, str]] | None:
    """The chat template of a model in Hugging Face's format, and the names of its special tokens, such as `bos_token`.
    None if it has none."""
    config = folder / "tokenizer_config.json"
    settings = beside(config, "special_tokens_map.json") | beside(config, config.name)
    source = beside(config, "chat_template.json").get("chat_template", settings.get("chat_template"))
    if isinstance(source, list):  # several, by name
        named = [each for each in source if isinstance(each, dict) and each.get("name") == "default"]
        source = named[0].get("template") if named else None
    file = folder / "chat_template.jinja"
    if file.is_file():
        source = read_bytes(file, LARGEST_TOKENIZER).decode("utf-8", "replace")
    if not isinstance(source, str):
        return None
    names = {key: token_name(value) for key, value in settings.items() if key.endswith("_token")}
    return source, {key: name for key, name in names.items() if name is not None}


@dataclass(frozen=True)
class Segment:
    """A piece of a rendered chat. `parts` are the template's own text, and numbers of messages in place of their
    contents."""

    parts: tuple[str | int, ...]
    learned: bool


_Shape = tuple[tuple[str, bool, tuple[ToolCall, ...]], ...]
"""Of each message: its role, whether it has content, and its calls."""
_MARK = "groundlingcontent{}x"
_PLACE = re.compile(r"groundlingcontent(\d+)x")
_U, _A = Message("user", "x"), Message("assistant", "x")
_PROBES = ((_U, _A, _U, _A, _U), (Message("system", "x"), _U, _A, _U))


class ImportedTemplate:
    """A model's own chat template. Contents never pass through it: it renders marks, which are replaced afterwards, so
    only the template's text can hold special tokens.

    `names` are its variables, such as `bos_token`. `specials` are the special tokens. Raises ValueError if a reply's
    turn does not continue what the model would be prompted with: then training would not match generation.
    """

    def __init__(self, source: str, names: Mapping[str, str], specials: Sequence[str]) -> None:
        self._names, self._specials = names, specials
        self._template = _compiled(source)
        self.end_of_turn = self._end_of_turn()
        for probe in _PROBES[: 2 if self._takes_a_system_message() else 1]:
            self.segments(probe, True)
        self._trimmed = {role for role in ("system", "user", "assistant", "tool") if self._trims(role)}

    def segments(
        self, messages: Sequence[Message], add_generation_prompt: bool, tools: str = ""
    ) -> tuple[Segment, ...]:
        """The chat in pieces. `tools` is the JSON of their definitions. Raises ValueError if the template refuses these
        messages."""
        shape = tuple((message.role, bool(message.content), message.calls) for message in messages)
        return self._segments(shape, add_generation_prompt, tools)

    @cached_property
    def takes_tools(self) -> bool:
        """Whether the template writes definitions of tools."""
        name = "groundlingtool"
        function = {"name": name, "description": "", "parameters": {"type": "object", "properties": {}}}
        try:
            return name in self._text(
                (("user", True, ()),), tools=json.dumps([{"type": "function", "function": function}])
            )
        except ValueError:
            return False

    def content(self, message: Message) -> str:
        """The message's content as the template writes it."""
        return message.content.strip() if message.role in self._trimmed else message.content

    @lru_cache(maxsize=1024)  # noqa: B019  (a tokenizer lives as long as the program)
    def _segments(self, shape: _Shape, add_generation_prompt: bool, tools: str) -> tuple[Segment, ...]:
        segments, before, written = list[Segment](), "", partial(self._text, tools=tools)

        def add(text: str, learned: bool) -> None:
            parts = _PLACE.split(text)
            pieces = [int(part) if i % 2 else part for i, part in enumerate(parts)]
            segments.append(Segment(tuple(piece for piece in pieces if piece != ""), learned))

        for turn, (role, *_) in enumerate(shape):
            if role == "assistant":
                prompt, whole = written(shape[:turn], True), written(shape[: turn + 1])
                if not (prompt.startswith(before) and whole.startswith(prompt)):
                    raise ValueError(
                        f"its chat template writes a chat differently once turn {turn + 1} follows, the assistant's"
                    )
                end = whole.rfind(self.end_of_turn, len(prompt)) + len(self.end_of_turn)
                if end < len(prompt) + len(self.end_of_turn):
                    raise ValueError(f"its chat template does not end turn {turn + 1} with {self.end_of_turn!r}")
                add(prompt[len(before) :], False)
                add(whole[len(prompt) : end], True)
                before = whole[:end]
        whole = written(shape, add_generation_prompt)
        if not whole.startswith(before):
            raise ValueError(f"its chat template writes a chat differently once turn {len(shape)} follows")
        add(whole[len(before) :], False)
        places = [part for segment in segments for part in segment.parts if isinstance(part, int)]
        if places != [i for i, (_, has_content, _) in enumerate(shape) if has_content]:
            raise ValueError("its chat template leaves out the content of a message, or changes it")
        return tuple(segments)

    def _text(self, shape: _Shape, add_generation_prompt: bool = False, mark: str = _MARK, tools: str = "") -> str:
        messages = [
            {"role": role, "content": mark.format(i) if has_content else ""}
            | ({"tool_calls": [_as_openai(call) for call in calls]} if calls else {})
            for i, (role, has_content, calls) in enumerate(shape)
        ]
        written = "".join(call.name + call.arguments for *_, calls in shape for call in calls)
        for what, given in (("a tool call", written), ("the definition of a tool", tools)):
            if any(form in given for special in self._specials for form in (special, _in_json(special))):
                raise ValueError(f"{what} holds the text of a special token")
        try:
            return self._template.render(
                messages=messages,
                add_generation_prompt=add_generation_prompt,
                tools=json.loads(tools) if tools else None,
                **self._names,
            )
        except Exception as error:  # a template can raise anything
            raise ValueError(f"its chat template refuses the messages: {error!s:.200}") from None

    def _end_of_turn(self) -> str:
        shape: _Shape = (("user", True, ()), ("assistant", True, ()))
        _, mark, after = self._text(shape).rpartition(_MARK.format(1))
        if not mark:
            raise ValueError("its chat template leaves out the content of a message, or changes it")
        found = re.search("|".join(map(re.escape, self._specials)) or "(?!)", after)
        if not found:
            raise ValueError("its chat template ends the assistant's turn with no special token")
        return found[0]

    def _takes_a_system_message(self) -> bool:
        try:
            return bool(self._text((("system", True, ()), ("user", True, ()))))
        except ValueError:
            return False

    def _trims(self, role: str) -> bool:
        """Whether the template strips the contents of this role."""
        turns = ["system", "user"] if role == "system" else ["user", "assistant", role][: 2 if role != "user" else 1]
        if role == "tool":
            turns = ["user", "assistant", "tool"]
        try:
            text = self._text(tuple((turn, True, ()) for turn in turns), mark=f" {_MARK} ")
        except ValueError:
            return False
        return f" {_MARK.format(turns.index(role))} " not in text


def _in_json(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)[1:-1]


def as_openai(message: Message) -> dict[str, Any]:
    """A message as chat templates take it."""
    calls = {"tool_calls": [_as_openai(call) for call in message.calls]} if message.calls else {}
    return {"role": message.role, "content": message.content} | calls


def _as_openai(call: ToolCall) -> dict[str, Any]:
    return {"type": "function", "function": {"name": call.name, "arguments": json.loads(call.arguments)}}


@cache
def _compiled(source: str) -> jinja2.Template:
    """A template, in a sandbox: a stranger may have written it. Raises ValueError if it is none."""
    import jinja2
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """`{% generation %}`, which marks what the assistant writes."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Any) -> Any:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def refuse(message: str) -> NoReturn:
        raise jinja2.TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.globals["raise_exception"] = refuse
    environment.filters["tojson"] = lambda value, **options: json.dumps(value, **({"ensure_ascii": False} | options))
    try:
        return environment.from_string(source)
    except (jinja2.TemplateError, RecursionError) as error:
        raise ValueError(f"its chat template is not valid: {error!s:.200}") from None

"""The Modelfile that Ollama reads beside a GGUF file."""

from __future__ import annotations

from groundling.data.tokenizers.base import Tokenizer
from groundling.data.tokenizers.chat import ChatTokenizer

_CHATML = """{{- range .Messages }}<|im_start|>{{ .Role }}
{{ .Content }}<|im_end|>NEWLINE{{ end }}<|im_start|>assistant
"""


def modelfile(file: str, context: int, tokenizer: Tokenizer) -> str:
    """Its text. Ollama has a template language of its own, so chats work there if they are ChatML."""
    template = "{{ .Prompt }}"
    if isinstance(tokenizer, ChatTokenizer) and "<|im_start|>" in tokenizer.template:
        template = _CHATML.replace("NEWLINE", "\n" if tokenizer.encode("\n", "skip") else "")
    return f'''# ollama create my-model -f Modelfile; ollama run my-model
FROM ./{file}
TEMPLATE """{template}"""
PARAMETER num_ctx {context}
PARAMETER temperature 0.7
PARAMETER top_k 50
PARAMETER top_p 1
PARAMETER repeat_penalty 1
'''

"""Text -> token ids, and back. Importing this package registers every kind of tokenizer with `Tokenizer.load`."""

from groundling.data.tokenizers.base import READERS, ByteTokenizer, CharTokenizer
from groundling.data.tokenizers.bpe import BpeTokenizer
from groundling.data.tokenizers.chat import ChatTokenizer
from groundling.data.tokenizers.foreign import read_foreign, read_sentencepiece
from groundling.data.tokenizers.huggingface import HuggingFaceTokenizer

READERS.update({
    "char": CharTokenizer.from_dict,
    "byte": ByteTokenizer.from_dict,
    "bpe": BpeTokenizer.from_dict,
    "chat": ChatTokenizer.from_dict,
    "huggingface": HuggingFaceTokenizer.from_dict,
    "sentencepiece": lambda _, path: read_sentencepiece(path),
    None: read_foreign,
})  # fmt: skip

"""What can go wrong while compiling.

CompileError
├── CheckpointError      a checkpoint file is missing, truncated or malformed
│   └── ConfigError      config.json asks for something that is not supported
├── QuantizeError        a weight cannot be quantized (NaN, infinity, shape)
├── TokenizerError       tokenizer.json has a construct the board cannot run
├── TemplateError        the chat template has a construct the board cannot run
├── TargetError          no instruction-set tier fits the CPU
├── PlanError            the lowered program cannot be turned into a plan
└── CodegenError         LLVM, the linker or the C compiler failed

A message says what failed, where (file, field, tensor), and what to do about it.
"""


class CompileError(Exception):
    """Base of everything crosscompile raises on purpose."""


class CheckpointError(CompileError):
    """A checkpoint file is missing, truncated or malformed."""


class ConfigError(CheckpointError):
    """config.json asks for something that is not supported."""


class QuantizeError(CompileError):
    """A weight cannot be quantized."""


class TokenizerError(CompileError):
    """tokenizer.json has a construct the board cannot run."""


def refuse(construct: str) -> TokenizerError:
    """What a tokenizer.json has and no board can do."""
    return TokenizerError(
        f"tokenizer.json: {construct} is not supported. Supported are byte-level BPE (GPT-2, Llama 3, Qwen), "
        "SentencePiece BPE (Llama 2, Mistral), Unigram and RWKV's World tokenizers; convert the tokenizer or extend "
        "crosscompile/tokenizer.py."
    )


class TemplateError(CompileError):
    """The chat template has a construct the board cannot run."""


class TargetError(CompileError):
    """No instruction-set tier fits the CPU."""


class PlanError(CompileError):
    """The lowered program cannot be turned into a plan."""


class CodegenError(CompileError):
    """LLVM, the linker or the C compiler failed."""

"""What a training step costs on many devices: computation, memory and traffic, by the way the work is divided.

Everything is arithmetic on the model's shapes and a device's data sheet. Nothing was measured on several GPUs, so
compare plans with each other rather than with a clock. `ASSUMPTIONS` lists what is assumed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from math import prod
from typing import Any, Literal

from groundling.config import ModelSettings
from groundling.model.describe import bytes_saved, flops_per_token, matrix_parameters, weight_shapes
from groundling.planning.devices import Device

EFFICIENCY = 0.5  # of the peak, in the products of a step
_BANDWIDTH = 0.7  # of a link's speed, in a collective operation
_USABLE = 0.9  # of a device's memory
_OUTSIDE = 1.5e9  # bytes of libraries and buffers on each device
_LOGITS = 12 * (1 << 27)  # bytes while a chunk of the loss is computed; see model/cross_entropy.py
_SHORTEST = 2048  # tokens of a window on each device of a context group; fewer are not worth the traffic
_LAUNCHES = 1e-4  # seconds that a pass through a block takes beside its products: many short kernels
_LATENCY = 2e-5  # seconds of a collective operation that moves nothing

ASSUMPTIONS = (
    f"Matrix products reach {EFFICIENCY:.0%} of the peak of the data sheet, collective operations {_BANDWIDTH:.0%} of "
    "the speed of their link.",
    "Weights, gradients and AdamW's moments are float32 (16 bytes for each weight), activations bfloat16 and the "
    "residual stream float32. Weights and gradients travel in float32. With --optimizer-bits 8, moments are in 8 bits "
    "(10.1 bytes for each weight).",
    f"Each pass through a block takes {_LAUNCHES * 1e6:.0f} µs beside its products.",
    "ddp and fsdp: traffic hides behind computation as far as it is shorter. Tensor and context: it adds to it.",
    "hsdp shards within a node and averages over nodes; `train` does not offer it yet.",
    "Pipelines have one stage of equal length on each device.",
    "Time for reading data, evaluations and checkpoints is left out.",
)

Kind = Literal["ddp", "fsdp", "hsdp"]


@dataclass(frozen=True)
class Layout:
    """How devices divide the work: `data` groups with `tensor` × `pipeline` × `context` devices each."""

    kind: Kind
    data: int
    tensor: int
    pipeline: int
    context: int
    micro_batch: int
    """Windows that a group reads at once."""
    recompute: bool
    """Whether each block computes its activations again in the backward pass."""

    @property
    def devices(self) -> int:
        return self.data * self.tensor * self.pipeline * self.context


@dataclass(frozen=True)
class Job:
    """A model, and the `windows` of an optimizer step."""

    model: ModelSettings
    vocab_size: int
    windows: int
    optimizer_bits: int = 32

    @property
    def tokens(self) -> int:
        return self.windows * self.model.block_size


@dataclass(frozen=True)
class Estimate:
    """A step of a layout: bytes on the fullest device, and seconds. `waiting` is the part of a step in which devices
    wait for each other: traffic that is not hidden, and the ends of a pipeline."""

    layout: Layout
    memory: float
    seconds: float
    waiting: float
    share_of_peak: float
    tokens_per_second: float

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def activation_bytes(model: ModelSettings) -> int:
    """What a block keeps of each token for its backward pass, under autocast to bfloat16, with fused attention."""
    C, hidden, heads = model.n_embd, model.n_hidden, model.n_head * model.head_dim
    qkv = heads + 2 * model.kv_heads * model.head_dim
    residual = 2 * 4 * C  # the inputs of both norms, in float32
    inputs = 2 * (C + heads + C + hidden)  # of the four products
    attention = 2 * qkv + 4 * model.n_head  # queries, keys, values, and the logarithm of each query's sum
    if model.position == "rope":  # rotated in float32, which is kept, and bfloat16
        attention += (4 + 2) * (heads + model.kv_heads * model.head_dim)
    mlp = 2 * hidden * (1 if model.mlp == "gelu" else 3)  # what the activation reads
    return residual + inputs + attention + mlp


def weight_bytes(job: Job) -> int:
    """Weights, or gradients, in float32."""
    return 4 * sum(prod(shape) for shape in weight_shapes(job.model, job.vocab_size).values())


def state_bytes(job: Job) -> int:
    """Weights, gradients and AdamW's two moments."""
    return 4 * weight_bytes(job) - bytes_saved(job.model, job.vocab_size, job.optimizer_bits)


def memory(job: Job, layout: Layout, device: Device) -> float:
    """Bytes on the fullest device, the first stage of a pipeline."""
    m, parts = job.model, layout.tensor * layout.pipeline
    state = state_bytes(job) / parts
    block = matrix_parameters(m, job.vocab_size, "h.") / m.n_layer / layout.tensor
    low = 2 * block * m.n_layer / layout.pipeline  # weights in bfloat16 for the products
    if layout.kind != "ddp":
        # Two blocks are whole at a time, the embedding and head always.
        state = state / _shards(layout, device) + 4 * (2 * block + job.vocab_size * m.n_embd / layout.tensor)
        low = 2 * 2 * block
    tokens = layout.micro_batch * m.block_size / layout.context
    kept = activation_bytes(m) * tokens / layout.tensor
    layers, flying = m.n_layer / layout.pipeline, min(layout.pipeline, micro_batches(job, layout))
    inputs = 4 * m.n_embd * tokens
    activations = flying * layers * inputs + kept if layout.recompute else flying * layers * kept
    head = min(_LOGITS, 12 * tokens * job.vocab_size) + 4 * job.vocab_size * m.n_embd / layout.tensor
    return state + low + activations + head + 2 * inputs + _OUTSIDE


def micro_batches(job: Job, layout: Layout) -> int:
    """Passes that each group makes in a step."""
    return max(1, job.windows // (layout.data * layout.micro_batch))


def estimate(job: Job, layout: Layout, device: Device) -> Estimate:
    """What a step costs with this layout."""
    m, passes = job.model, micro_batches(job, layout)
    flops = flops_per_token(m, job.vocab_size) * job.tokens
    again = flops_per_token(m, 0) * job.tokens / 3 if layout.recompute else 0.0
    compute = (flops + again) / layout.devices / (device.teraflops * 1e12 * EFFICIENCY)
    compute += passes * m.n_layer / layout.pipeline * _LAUNCHES
    waiting = compute * (layout.pipeline - 1) / passes  # for the ends of a pipeline, and for traffic
    waiting += max(0.0, _data_seconds(job, layout, device, passes) - compute)
    waiting += _tensor_seconds(job, layout, device, passes) + _context_seconds(job, layout, device, passes)
    waiting += _pipeline_seconds(job, layout, device)
    # The optimizer reads weight, gradient and both moments, and writes all but the gradient.
    divided = layout.tensor * layout.pipeline * _shards(layout, device)
    update = (2 * state_bytes(job) - weight_bytes(job)) / divided / (device.bandwidth * 1e9)
    seconds = compute + waiting + update
    share = flops / seconds / layout.devices / (device.teraflops * 1e12)
    return Estimate(layout, memory(job, layout, device), seconds, waiting, share, job.tokens / seconds)


def _shards(layout: Layout, device: Device) -> int:
    """Over how many data groups the weights and the optimizer's state are divided."""
    return {"ddp": 1, "fsdp": layout.data, "hsdp": min(layout.data, device.per_node)}[layout.kind]


def _ring(size: float, n: int, speed: float) -> float:
    """Seconds to gather, or to reduce and scatter, `size` bytes over `n` devices."""
    return 0.0 if n == 1 else (n - 1) / n * size / (speed * 1e9 * _BANDWIDTH) + _LATENCY


def _speed(n: int, stride: int, device: Device) -> float:
    """GB/s of rings over `n` devices, of which every `stride`-th is one. Across nodes, each device of a node has a ring
    with its own connection to the network."""
    if n * stride <= device.per_node:
        return device.link
    return min(device.link, device.network * max(1, device.per_node // stride))


def _data_seconds(job: Job, layout: Layout, device: Device, passes: int) -> float:
    """The sum of the gradients over the data groups, and with shards the gathering of weights in each pass."""
    parts = layout.tensor * layout.pipeline
    size = weight_bytes(job) / parts  # or of gradients
    ranks = layout.data * layout.context  # context ranks have the same weights
    whole = _speed(ranks, parts, device)
    if layout.kind == "ddp":
        return 2 * _ring(size, ranks, whole)
    if layout.kind == "fsdp":
        return 3 * passes * _ring(size, ranks, whole)
    near = max(1, min(ranks, device.per_node // layout.tensor))
    return 3 * passes * _ring(size, near, device.link) + 2 * _ring(size / near, ranks // near, device.network)


def _tensor_seconds(job: Job, layout: Layout, device: Device, passes: int) -> float:
    """Each block adds up its two results over the devices of a group, forward and backward."""
    size = 2 * layout.micro_batch * job.model.block_size / layout.context * job.model.n_embd
    layers = job.model.n_layer / layout.pipeline
    sums = 4 * (6 / 4 if layout.recompute else 1)
    return passes * layers * sums * 2 * _ring(size, layout.tensor, device.link)


def _context_seconds(job: Job, layout: Layout, device: Device, passes: int) -> float:
    """Keys and values travel around the ring, forward and twice back with their gradients."""
    m = job.model
    size = 2 * 2 * layout.micro_batch * m.block_size * m.kv_heads * m.head_dim / layout.tensor
    speed = _speed(layout.context, layout.tensor, device)
    return passes * m.n_layer / layout.pipeline * 3 * _ring(size, layout.context, speed)


def _pipeline_seconds(job: Job, layout: Layout, device: Device) -> float:
    """Activations go from stage to stage, and gradients back. Only those of one pass are waited for."""
    if layout.pipeline == 1:
        return 0.0
    size = 4 * layout.micro_batch * job.model.block_size / layout.context * job.model.n_embd
    speed = _speed(layout.devices, device.per_node, device) * 1e9 * _BANDWIDTH
    return 2 * (layout.pipeline - 1) * (size / speed + _LATENCY)


def layouts(job: Job, devices: int, device: Device) -> Iterator[Layout]:
    """All ways to divide a step over the devices that the model's shape allows."""
    m = job.model
    for tensor in (t for t in _divisors(min(devices, device.per_node)) if m.kv_heads % t == 0 == m.n_hidden % t):
        for pipeline in (p for p in _divisors(devices // tensor) if devices % (tensor * p) == 0 == m.n_layer % p):
            rest = devices // (tensor * pipeline)
            longest = max(1, m.block_size // _SHORTEST)
            for context in (c for c in _divisors(rest) if c <= longest and m.block_size % c == 0):
                data = rest // context
                if job.windows % data:
                    continue
                kinds: tuple[Kind, ...] = ("ddp",) if data * context == 1 or pipeline > 1 else ("ddp", "fsdp", "hsdp")
                for kind in kinds[: 3 if devices > device.per_node else 2]:
                    for micro_batch in (b for b in _divisors(job.windows // data) if b <= 64):
                        for recompute in (False, True):
                            yield Layout(kind, data, tensor, pipeline, context, micro_batch, recompute)


def _divisors(n: int) -> list[int]:
    return [d for d in range(1, n + 1) if n % d == 0]


def divisible(job: Job, devices: int) -> Job:
    """A job of at least as many windows, of which all devices get as many."""
    return replace(job, windows=-(-job.windows // devices) * devices)


def best(job: Job, devices: int, device: Device) -> list[Estimate]:
    """The fastest estimate of each way to divide the work that fits into memory, the fastest first. Empty if none."""
    found: dict[tuple[Any, ...], Estimate] = {}
    for layout in layouts(job, devices, device):
        new = estimate(job, layout, device)
        key = (layout.kind, layout.data, layout.tensor, layout.pipeline, layout.context)
        if new.memory <= _USABLE * device.gigabytes * 1e9 and (key not in found or new.seconds < found[key].seconds):
            found[key] = new
    return sorted(found.values(), key=lambda each: each.seconds)

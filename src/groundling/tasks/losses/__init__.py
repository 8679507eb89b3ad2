"""The losses of post-training, as functions of tensors: logits or log-probabilities come in, losses go out.

They know no model, batch or trainer. Shapes: B batch, T time, V vocabulary, P pairs. Losses and log-probabilities are
in nats and float32, also where logits are bfloat16. docs/parity.md compares them with TRL's.
"""

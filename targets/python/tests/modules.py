"""A tree of modules with the hooks of `torch.nn.Module`, for tests without PyTorch."""

class Clock:
    """The time that modules take, in seconds. It stands still between them."""

    def __init__(self):
        self.seconds = 0.0

    def __call__(self):
        return self.seconds


clock = Clock()


class Tensor:
    def __init__(self, *shape):
        self.shape = shape

    def dim(self):
        return len(self.shape)

    def numel(self):
        count = 1
        for size in self.shape:
            count *= size
        return count

    def element_size(self):
        return 4


class Handle:
    def __init__(self, hooks, hook):
        self._hooks, self._hook = hooks, hook

    def remove(self):
        self._hooks.remove(self._hook)


class Module:
    """Runs its children one after the other, and then takes its own time."""

    def __init__(self, children=None, width=8, seconds=0.001, weight=None):
        self._children = dict(children or {})
        self._before, self._after = [], []
        self.width, self.seconds = width, seconds
        if weight is not None:
            self.weight = weight

    def children(self):
        return self._children.values()

    def named_modules(self, prefix=""):
        yield prefix, self
        for name, child in self._children.items():
            yield from child.named_modules(f"{prefix}.{name}" if prefix else name)

    def parameters(self):
        if hasattr(self, "weight"):
            yield self.weight
        for child in self.children():
            yield from child.parameters()

    def register_forward_pre_hook(self, hook):
        self._before.append(hook)
        return Handle(self._before, hook)

    def register_forward_hook(self, hook):
        self._after.append(hook)
        return Handle(self._after, hook)

    def hooks(self):
        return len(self._before) + len(self._after)

    def forward(self, x):
        for child in self.children():
            child(x)
        clock.seconds += self.seconds
        return Tensor(*x.shape[:-1], self.width)

    def __call__(self, *inputs):
        for hook in self._before:
            hook(self, inputs)
        output = self.forward(*inputs)
        for hook in self._after:
            hook(self, inputs, output)
        return output


class Linear(Module):
    def __init__(self, inputs, outputs, seconds=0.001):
        super().__init__(width=outputs, seconds=seconds, weight=Tensor(outputs, inputs))
        self.in_features, self.out_features = inputs, outputs


class RMSNorm(Module):
    pass


class Layer(Module):
    def __init__(self):
        super().__init__(
            {
                "input_layernorm": RMSNorm(weight=Tensor(8)),
                "self_attn": Module({"q_proj": Linear(8, 8), "o_proj": Linear(8, 8)}),
                "mlp": Module({"up_proj": Linear(8, 16, 0.004)}),
            }
        )


class Model(Module):
    """A model with the module names of Qwen2-VL."""

    def __init__(self):
        super().__init__(
            {
                "visual": Module(
                    {
                        "blocks": Module({"0": Module({"attn": Module({"qkv": Linear(8, 24)})})}),
                        "merger": Module({"ln_q": RMSNorm(), "mlp": Linear(8, 8, 0.002)}),
                    }
                ),
                "model": Module(
                    {"embed_tokens": Module(), "layers": Module({"0": Layer(), "1": Layer()})}
                ),
                "lm_head": Linear(8, 32),
            }
        )

    def forward(self, patches, tokens):
        if patches is not None:
            self._children["visual"](patches)
        self._children["model"](tokens)
        return self._children["lm_head"](tokens)

    def generate(self, steps):
        self(Tensor(4, 8), Tensor(1, 6, 8))
        for _ in range(steps):
            self(None, Tensor(1, 1, 8))

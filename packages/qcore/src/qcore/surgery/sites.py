"""Where a module sits in a model, and why it must not be replaced there."""

import dis
import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from types import CodeType

from torch import nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.parameter import is_lazy

from qcore.layers import Quadratic

LINEAR = (nn.Linear, _ConvNd)
"""What is linear in its input: also the base of transposed and lazy convolutions."""

Chain = tuple[tuple[str, nn.Module], ...]


@dataclass(frozen=True)
class Site:
    """A module of a model, once for all the places where it is registered.

    ``chains`` holds, for each place, the modules from the root down to it, with their paths.
    """

    module: nn.Module
    chains: list[Chain] = field(default_factory=list)

    @property
    def path(self) -> str:
        """The path of the first place; empty for the root."""
        return self.chains[0][-1][0]

    @property
    def name(self) -> str:
        """The path for messages, where the root is named by its type."""
        return self.path or type(self.module).__name__

    def replace(self, model: nn.Module, new: nn.Module) -> nn.Module:
        """Put ``new`` in every place of ``model`` and return it; ``new`` itself for the root."""
        for chain in self.chains:
            if len(chain) == 1:
                return new
            parent = chain[-2][1]
            setattr(parent, chain[-1][0].rpartition(".")[2], new)
        return model


def find(model: nn.Module, kinds: type[nn.Module] | tuple[type[nn.Module], ...]) -> list[Site]:
    """All modules of these kinds, in order of registration, but none inside another or a neuron."""
    sites: dict[int, Site] = {}

    def visit(chain: Chain) -> None:
        path, module = chain[-1]
        if isinstance(module, kinds):
            sites.setdefault(id(module), Site(module)).chains.append(chain)
        elif not isinstance(module, Quadratic):
            # not named_children(): that names a shared module only once
            for name, child in module._modules.items():
                if child is not None:
                    visit((*chain, (f"{path}.{name}" if path else name, child)))

    visit((("", model),))
    return list(sites.values())


def obstacles(model: nn.Module, sites: Sequence[Site]) -> dict[str, str]:
    """Why a module cannot be replaced without changing what the model computes, by path.

    A replacement is called as the module was, but has no ``weight`` or ``bias``: a module stays
    whose parameters belong to another one too, or are read in the ``forward`` of one around it.
    """
    owners: dict[int, list[tuple[str, nn.Module]]] = {}
    for path, module in model.named_modules():
        for parameter in module._parameters.values():
            if parameter is not None:
                owners.setdefault(id(parameter), []).append((path, module))
    read: dict[int, frozenset[str]] = {}
    reasons: dict[str, str] = {}
    for site in sites:
        inside = {id(module) for module in site.module.modules()}
        parameters = list(site.module.parameters())
        if any(is_lazy(parameter) for parameter in parameters):
            reasons[site.path] = "its parameters are not initialised: run the model once first"
            continue
        for parameter in parameters:
            others = [path for path, owner in owners[id(parameter)] if id(owner) not in inside]
            if others:
                reasons[site.path] = f"it shares a parameter with {others[0]!r}"
        for chain in site.chains:
            place = chain[-1][0].split(".")
            patterns = {place[-1], ".".join([*place[-2:-1], "*"])}
            for path, module in chain[:-1]:
                if id(module) not in read:
                    read[id(module)] = _parameters_read(module)
                if patterns & read[id(module)]:
                    kind = type(module).__name__
                    reasons[site.path] = (
                        f"{path or 'the model'} ({kind}) reads its weight or bias in forward"
                    )
    return reasons


def _parameters_read(module: nn.Module) -> frozenset[str]:
    """Names of children whose ``weight`` or ``bias`` the ``forward`` of ``module`` reads.

    ``"qkv"`` for ``self.qkv.weight``, ``"net.*"`` for ``self.net[0].weight``. It is read off the
    bytecode of every method that a method named ``forward...`` mentions, of base classes too:
    unlike the source, that is always there, and unlike a trial run it needs no input. What reaches
    a weight in another way, e.g. ``getattr``, fails loudly with an ``AttributeError`` later.
    """
    kind = type(module)
    todo = [name for name in dir(kind) if name.startswith("forward")]
    functions: list[object] = [vars(module).get("forward")]  # some libraries patch the instance
    done: set[str] = set()
    found: set[str] = set()
    while todo or functions:
        for function in functions:
            for code in _codes(function):
                parameters, mentioned = _attributes(code)
                found |= parameters
                todo += mentioned
        functions = []
        if todo:
            name = todo.pop()
            if name not in done:
                done.add(name)
                bases = [base for base in kind.__mro__ if base not in nn.Module.__mro__]
                functions = [vars(base)[name] for base in bases if name in vars(base)]
    return frozenset(found)


def _codes(function: object) -> Iterator[CodeType]:
    """The code of a method, a property or the like, and the functions defined inside it."""
    if isinstance(function, property):
        function = function.fget
    function = inspect.unwrap(getattr(function, "__func__", function))  # type: ignore[arg-type]
    todo = [getattr(function, "__code__", None)]
    while todo:
        code = todo.pop()
        if isinstance(code, CodeType):
            yield code
            todo += [constant for constant in code.co_consts if isinstance(constant, CodeType)]


def _attributes(code: CodeType) -> tuple[set[str], set[str]]:
    """Whose ``weight`` or ``bias`` the code reads, and all attributes that it mentions."""
    read: set[str] = set()
    mentioned: set[str] = set()
    steps = [step for step in dis.get_instructions(code) if step.opname != "EXTENDED_ARG"]
    for i, step in enumerate(steps):
        if step.opname not in ("LOAD_ATTR", "LOAD_METHOD"):
            continue
        mentioned.add(step.argval)
        if step.argval not in ("weight", "bias") or i == 0:
            continue
        if steps[i - 1].opname == "LOAD_ATTR":
            read.add(steps[i - 1].argval)
        elif steps[i - 1].opname == "BINARY_SUBSCR" or steps[i - 1].argrepr == "[]":
            names = [other.argval for other in steps[:i] if other.opname == "LOAD_ATTR"]
            read.update(f"{name}.*" for name in names[-1:])
    return read, mentioned

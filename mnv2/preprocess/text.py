"""A pipeline as text: the names of operations with their arguments, in order, divided by |.

    inception_crop(0.08, 1.0)|flip|rand_augment(2, 9)|erase(0.25)|mix(mixup=0.2, cutmix=1.0)

An operation is a function with the decorator `operation`. Its parameters that have defaults are its
arguments in the text, and the first line of its docstring is its line of help.
"""

import ast
import dataclasses
import difflib
import importlib
import inspect
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from mnv2.runtime.errors import Check, UserError

# The kinds of operations, in the order in which a text must have them.
HOST = "crop or resize one picture, on the host"
PICTURES = "change a batch of pictures, on the device"
LABELS = "change a batch of labels, on the device"
MIX = "mix the pictures of a batch and their labels, on the device"
_ORDER = {HOST: 0, PICTURES: 1, LABELS: 1, MIX: 2}
# The modules that have the operations of each kind. Those of the host need no JAX.
_MODULES = {
    HOST: ("host",),
    PICTURES: ("simple", "policies"),
    LABELS: ("simple",),
    MIX: ("mixing",),
}


class Operation(NamedTuple):
    """An operation that a text can name.

    defaults  of its arguments, in their order
    checks    of their values
    sizes     whether the pictures that it returns have a size that the text or the caller decides
    """

    name: str
    kind: str
    function: Callable[..., Any]
    defaults: dict[str, Any]
    checks: dict[str, Check]
    sizes: bool
    help: str


OPERATIONS: dict[str, Operation] = {}


def operation[F: Callable[..., Any]](
    kind: str, *, sizes: bool = False, **checks: Check
) -> Callable[[F], F]:
    """Returns the decorator of an operation of a kind, with a check for each argument that has one.

    What the function gets, apart from the arguments that the text gives by keyword:

    HOST      picture (h w c, uint8 or float32), size (height, width) that the caller wants, and
              random, a `numpy.random.Generator`, or None where nothing is random
    PICTURES  images (b h w c, uint8) and keys (b), JAX's, one for each image
    LABELS    labels (b, int32), keys (b), which depend only on the seed and the example, and
              classes, their number
    MIX       images (b h w c, float), key, one for the whole batch, and step

    HOST, PICTURES and LABELS return the first of these, changed; for MIX see `mixing.mix`.
    """

    def register(function: F) -> F:
        name = function.__name__.strip("_")
        parameters = inspect.signature(function).parameters.values()
        defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
        help = (inspect.getdoc(function) or "").partition("\n")[0]
        OPERATIONS[name] = Operation(name, kind, function, defaults, checks, sizes, help)
        return function

    return register


@dataclasses.dataclass(frozen=True)
class Call:
    """An operation of a text, with the values of all its arguments."""

    name: str
    arguments: tuple[tuple[str, Any], ...]

    @property
    def operation(self) -> Operation:
        return OPERATIONS[self.name]

    def __getitem__(self, argument: str) -> Any:
        return dict(self.arguments)[argument]

    def replace(self, **arguments: Any) -> "Call":
        """Returns the same operation with other values of some arguments."""
        return Call(self.name, tuple({**dict(self.arguments), **arguments}.items()))

    def __call__(self, *positional: Any, **more: Any) -> Any:
        """Calls the operation on what its kind gets."""
        return self.operation.function(*positional, **more, **dict(self.arguments))


class Pipeline(NamedTuple):
    """The operations of a text, in their order."""

    calls: tuple[Call, ...] = ()

    def of(self, *kinds: str) -> tuple[Call, ...]:
        """Returns the operations of some kinds."""
        return tuple(call for call in self.calls if call.operation.kind in kinds)

    def find(self, name: str) -> Call | None:
        """Returns the first operation of a name; None if there is none."""
        return next((call for call in self.calls if call.name == name), None)

    def flat(self) -> dict[str, Any]:
        """Returns every argument by OPERATION.ARGUMENT, for tables of hyperparameters.

        The second operation of a name is OPERATION_2.
        """
        found: dict[str, Any] = {}
        names: list[str] = []
        for call in self.calls:
            names.append(call.name)
            count = names.count(call.name)
            name = call.name if count == 1 else f"{call.name}_{count}"
            found |= {f"{name}.{argument}": value for argument, value in call.arguments}
        return found


def parse(text: str, field: str, kinds: tuple[str, ...] = tuple(_ORDER)) -> Pipeline:
    """Returns the pipeline that a text describes; '' is none. `kinds` may be in it.

    Raises UserError, which begins with the name of the `field`, for an unknown operation or
    argument, a value that an argument cannot have, and operations in another order than `kinds`.
    """
    _register(kinds)
    calls = tuple(_call(part, field) for part in _parts(text, field))
    before = None
    for call in calls:
        kind = call.operation.kind
        if kind not in kinds:
            raise UserError(f"{field} cannot have {call.name}: it can have {_names(kinds)}")
        if before is not None and _ORDER[kind] < _ORDER[before.operation.kind]:
            raise UserError(
                f"{field} has {call.name} after {before.name}, but must have it before: first what "
                "crops and resizes, then other operations, and mix at the end"
            )
        if kind == MIX and before is not None and before.operation.kind == MIX:
            raise UserError(f"{field} must have {call.name} only once")
        before = call
    host = Pipeline(calls).of(HOST)
    if host and not host[-1].operation.sizes:
        raise UserError(
            f"{field} must crop or resize to a fixed size after {host[-1].name}: add center_crop"
        )
    return Pipeline(calls)


def _register(kinds: Iterable[str]) -> None:
    """Imports the modules of some kinds of operations."""
    for module in sorted({module for kind in kinds for module in _MODULES[kind]}):
        importlib.import_module(f"mnv2.preprocess.{module}")


def _parts(text: str, field: str) -> Iterator[str]:
    """Yields the text of each operation; a | within quotes or parentheses divides nothing."""
    try:
        tree = ast.parse(text.strip(), mode="eval").body if text.strip() else None
    except (SyntaxError, ValueError):
        raise UserError(
            f'{field} must be like "flip|erase(0.25)", operations divided by |, got {text!r}'
        ) from None
    found = []
    while isinstance(tree, ast.BinOp) and isinstance(tree.op, ast.BitOr):
        found.append(tree.right)
        tree = tree.left
    if tree is not None:
        found.append(tree)
    yield from (ast.unparse(node) for node in reversed(found))


def _call(part: str, field: str) -> Call:
    node = ast.parse(part, mode="eval").body
    name = node.func if isinstance(node, ast.Call) else node
    if not isinstance(name, ast.Name):
        raise UserError(f'{field} must be like "flip|erase(0.25)", got {part!r}')
    if name.id not in OPERATIONS:
        _register(_ORDER)
    if name.id not in OPERATIONS:
        raise UserError(f"{field} has the unknown operation {name.id}{_nearest(name.id)}")
    found = OPERATIONS[name.id]
    given: dict[str, Any] = {}
    if isinstance(node, ast.Call):
        if len(node.args) > len(found.defaults):
            raise UserError(f"{field}: {_signature(found)} takes no further value")
        names = [*list(found.defaults)[: len(node.args)], *(one.arg for one in node.keywords)]
        values = [*node.args, *(one.value for one in node.keywords)]
        for argument, value in zip(names, values, strict=True):
            if argument not in found.defaults:
                raise UserError(f"{field}: {_signature(found)} has no argument {argument}")
            if argument in given:
                raise UserError(f"{field}: {name.id} has {argument} twice")
            given[argument] = _value(value, part, field)
    arguments = []
    for argument, default in found.defaults.items():
        value = given.get(argument, default)
        check = found.checks.get(argument)
        if check is not None and not (value is None and default is None):
            value = check(f"{field}: {argument} of {name.id}", value)
        arguments.append((argument, value))
    return Call(name.id, tuple(arguments))


def _value(node: ast.expr, part: str, field: str) -> Any:
    try:
        return ast.literal_eval(node)
    except ValueError:
        raise UserError(f"{field}: the values in {part} must be numbers or texts") from None


def _signature(found: Operation) -> str:
    arguments = ", ".join(f"{name}={value!r}" for name, value in found.defaults.items())
    return f"{found.name}({arguments})"


def _nearest(name: str) -> str:
    nearest = difflib.get_close_matches(name, OPERATIONS, n=1)
    if nearest:
        return f": did you mean {nearest[0]}?"
    return f": there are {_names(tuple(_ORDER))}"


def _names(kinds: tuple[str, ...]) -> str:
    return ", ".join(sorted(x.name for x in OPERATIONS.values() if x.kind in kinds))


def described() -> str:
    """Returns tables of all operations in Markdown, with their arguments and lines of help."""
    _register(_ORDER)
    lines = []
    for kind in _ORDER:
        of_kind = [found for found in OPERATIONS.values() if found.kind == kind]
        lines += [f"To {kind}:", "", "| operation | what it does |", "|---|---|"]
        lines += [f"| `{_signature(found)}` | {found.help} |" for found in of_kind] + [""]
    return "\n".join(lines).strip()

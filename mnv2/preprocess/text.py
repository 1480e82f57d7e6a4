"""A pipeline as text: the names of operations with their arguments, in order, divided by |.

    inception_crop(0.08, 1.0)|flip|rand_augment(2, 9)|erase(0.25)|mix(mixup=0.2, cutmix=1.0)

An operation is a function with the decorator `operation`; its defaults are its arguments.
"""

import ast
import collections
import dataclasses
import difflib
import importlib
import inspect
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from mnv2.runtime.errors import Check, UserError

# The kinds of operations, in the order in which a text must have them.
HOST = "crop or resize one picture, on the host"
PICTURES = "change a batch of pictures, on the device"
LABELS = "change a batch of labels, on the device"
MIX = "mix the pictures of a batch and their labels, on the device"
_MOST = 20  # operations: XLA compiles 20 flips in 3 s on a CPU, and 40 in minutes
_ORDER = {HOST: 0, PICTURES: 1, LABELS: 1, MIX: 2}
# The modules that have the operations of each kind. Those of the host need no JAX.
_MODULES = {HOST: ["host"], PICTURES: ["simple", "policies"], LABELS: ["simple"], MIX: ["mixing"]}


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

    def __str__(self) -> str:
        arguments = ", ".join(f"{name}={value!r}" for name, value in self.defaults.items())
        return f"{self.name}({arguments})"


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
        """Returns every argument by OPERATION.ARGUMENT, or OPERATION_2.ARGUMENT for the second."""
        found: dict[str, Any] = {}
        count: collections.Counter[str] = collections.Counter()
        for call in self.calls:
            count[call.name] += 1
            name = call.name if count[call.name] == 1 else f"{call.name}_{count[call.name]}"
            found |= {f"{name}.{argument}": value for argument, value in call.arguments}
        return found


def parse(text: str, field: str, kinds: tuple[str, ...] = tuple(_ORDER)) -> Pipeline:
    """Returns the pipeline that a text describes; '' is none. `kinds` may be in it.

    Raises UserError, which begins with the name of the `field`, if it is none.
    """
    _register(kinds)
    calls = tuple(_call(node, field) for node in _nodes(text, field))
    if len(calls) > _MOST:
        raise UserError(f"{field} has {len(calls)} operations, and must have at most {_MOST}")
    for before, call in zip((None, *calls), calls, strict=False):
        kind = call.operation.kind
        if kind not in kinds:
            raise UserError(f"{field} cannot have {call.name}: it can have {_names(kinds)}")
        if before is not None and _ORDER[kind] < _ORDER[before.operation.kind]:
            raise UserError(f"{field} has {call.name} after {before.name}, but must have it before")
        if before is not None and kind == before.operation.kind == MIX:
            raise UserError(f"{field} must have {call.name} only once")
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


def _nodes(text: str, field: str) -> list[ast.expr]:
    """Returns the operations, as parsed; a | within quotes or parentheses divides nothing."""
    if not text.strip():
        return []
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # the last two: far too long
        raise UserError(
            f'{field} must be like "flip|erase(0.25)", operations divided by |, got {text[:200]!r}'
        ) from None
    nodes: list[ast.expr] = []
    while isinstance(tree, ast.BinOp) and isinstance(tree.op, ast.BitOr):
        nodes.insert(0, tree.right)
        tree = tree.left
    return [tree, *nodes]


def _call(node: ast.expr, field: str) -> Call:
    function = node.func if isinstance(node, ast.Call) else node
    if not isinstance(function, ast.Name):
        raise UserError(f'{field} must be like "flip|erase(0.25)", got {ast.unparse(node)!r}')
    name = function.id
    if name not in OPERATIONS:
        _register(_ORDER)
    if name not in OPERATIONS:
        nearest = difflib.get_close_matches(name, OPERATIONS, n=1)
        hint = f"did you mean {nearest[0]}?" if nearest else f"there are {_names(tuple(_ORDER))}"
        raise UserError(f"{field} has the unknown operation {name[:50]}: {hint}")
    found = OPERATIONS[name]
    values = dict(found.defaults)
    for argument, value in _given(node, found, field).items():
        try:
            values[argument] = ast.literal_eval(value)
        except ValueError:
            text = ast.unparse(node)
            raise UserError(f"{field}: the values in {text} must be numbers or texts") from None
    for argument, check in found.checks.items():
        if not (values[argument] is None and found.defaults[argument] is None):
            values[argument] = check(f"{field}: {argument} of {name}", values[argument])
    return Call(name, tuple(values.items()))


def _given(node: ast.expr, found: Operation, field: str) -> dict[str, ast.expr]:
    """Returns the arguments that a text gives, by their names."""
    if not isinstance(node, ast.Call):
        return {}
    either = inspect.Parameter.POSITIONAL_OR_KEYWORD
    signature = inspect.Signature([inspect.Parameter(name, either) for name in found.defaults])
    named = {keyword.arg or "**": keyword.value for keyword in node.keywords}
    try:
        return signature.bind_partial(*node.args, **named).arguments
    except TypeError as error:
        raise UserError(f"{field}: {found} {error}") from None


def _names(kinds: tuple[str, ...]) -> str:
    return ", ".join(sorted(x.name for x in OPERATIONS.values() if x.kind in kinds))


def described() -> str:
    """Returns tables of all operations in Markdown, with their arguments and lines of help."""
    _register(_ORDER)
    lines = []
    for kind in _ORDER:
        of_kind = [found for found in OPERATIONS.values() if found.kind == kind]
        lines += [f"To {kind}:", "", "| operation | what it does |", "|---|---|"]
        lines += [f"| `{found}` | {found.help} |" for found in of_kind] + [""]
    return "\n".join(lines).strip()

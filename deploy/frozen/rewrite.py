"""The changes of the frozen build to modules, so that importing them costs next to nothing.

What the code does afterwards is the same, but that a frozen dataclass does not guard its fields:
type checkers and the tests of the plain modules do, and each guarded assignment is a call.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from pathlib import Path

OURS = ("cni_common", "commands", "plugins")  # whose dataclasses are written out

# Modules that cost more than what is used of them. They get a stand-in, a file in standins/, and
# the real module as soon as more is asked for. First the importer, then the modules.
SPARED = {
    "cni_common": {"functools", "hashlib", "json", "signal", "socket"},
    "plugins": {"functools", "hashlib", "socket"},
    "ipaddress": {"functools"},
}
# The engine serves many requests: it may take its time to start, and gets the real modules.
_NEVER_SPARED = ("cni_common.serve.engine",)
# Names of sockets and of the module `socket` that the stand-in lacks. Use of one of these names
# loads the real module: the stand-in could give the functions, but not sockets with these methods.
_REAL_SOCKETS = {
    *("accept", "create_connection", "create_server", "dup", "fromfd", "makefile"),
    *("recv_fds", "send_fds", "sendfile", "socketpair"),
}
# Stand-ins that never load the real one.
_WHOLE = {"dataclasses", "_collections_abc"}
# A method that need not be written anew for each dataclass: code that is loaded takes time.
_SHARED = ("show_fields",)
_STANDINS = Path(__file__).parent / "standins"
_REST = """
def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(name)  # the import system asks for such
    import {module}
    return getattr({module}, name)
"""


class UnsupportedError(Exception):
    """The build does not know how to rewrite this; it must be taught, or the code be changed."""


def rewrite(module: str, source: bytes) -> ast.Module:
    """Return the module as the bundle has it. Raises UnsupportedError."""
    tree = ast.parse(source)
    package = module.partition(".")[0]
    _Unreachable().visit(tree)
    if package in OURS:
        _Dataclasses(module).visit(tree)
    if module == "ipaddress":
        _Constants().visit(tree)
    _Imports(_spared(module, tree)).visit(tree)
    _Annotations(module).visit(tree)
    return ast.fix_missing_locations(tree)


def standins() -> dict[str, bytes]:
    """Return the source of each stand-in, by the name that it has in the bundle."""
    sources = {}
    for module in sorted(_WHOLE.union(*SPARED.values())):
        source = (_STANDINS / f"{module}.py").read_text()
        rest = "" if module in _WHOLE else _REST.format(module=module)
        sources[_standin(module)] = (source + rest).encode()
    return sources


def _spared(module: str, tree: ast.AST) -> set[str]:
    if module in _NEVER_SPARED:
        return set()
    package = module.partition(".")[0]
    spared = SPARED.get(package, set()) | SPARED.get(module, set())
    if package in OURS and _REAL_SOCKETS & _attributes(tree):
        return spared - {"socket"}
    return spared


def _standin(module: str) -> str:
    return f"standin_{module}"


def _attributes(tree: ast.AST) -> set[str]:
    return {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}


class _Unreachable(ast.NodeTransformer):
    """Leave out what only type checkers see, and what only runs in a module that is the program."""

    _CONDITIONS = ("TYPE_CHECKING", "typing.TYPE_CHECKING", "__name__ == '__main__'")

    def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.ImportFrom | None:
        if node.module == "__future__":
            return None  # `_Annotations` leaves nothing for it
        if node.module == "typing":
            node.names = [alias for alias in node.names if alias.name != "TYPE_CHECKING"]
        return node if node.names else None

    def visit_If(self, node: ast.If) -> ast.stmt | list[ast.stmt]:
        self.generic_visit(node)
        if ast.unparse(node.test) in self._CONDITIONS:
            return node.orelse or ast.Pass()
        return node


class _Imports(ast.NodeTransformer):
    """Import stand-ins in place of modules."""

    def __init__(self, spared: set[str]) -> None:
        self._spared = spared

    def visit_Import(self, node: ast.Import) -> ast.Import:
        for alias in node.names:
            if alias.name in self._spared:
                alias.asname = alias.asname or alias.name
                alias.name = _standin(alias.name)
        return node

    def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.ImportFrom:
        if node.level == 0 and node.module in self._spared:
            node.module = _standin(node.module)
        return node


class _Constants(ast.NodeTransformer):
    """Make ipaddress' lists of special networks when one is asked for: that takes 0.3 ms."""

    _NAMES = ("_IPv4Constants", "_IPv6Constants")
    _LATER = """
class _Later:
    def __init__(self, make):
        self._make = make

    def __getattr__(self, name):
        self.__dict__.update(vars(self._make()))
        return object.__getattribute__(self, name)
"""

    def visit_Module(self, node: ast.Module) -> ast.Module:
        self.generic_visit(node)
        node.body[1:1] = ast.parse(self._LATER).body  # behind the docstring
        return node

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.stmt:
        if node.name not in self._NAMES:
            return node
        make = ast.parse(f"def {node.name}(): return {node.name}").body[0]
        assert isinstance(make, ast.FunctionDef)
        make.body.insert(0, node)
        return make

    def visit_Assign(self, node: ast.Assign) -> ast.Assign:
        if isinstance(node.value, ast.Name) and node.value.id in self._NAMES:
            node.value = ast.Call(ast.Name("_Later", ast.Load()), [node.value], [])
        return node


class _Annotations(ast.NodeTransformer):
    """Leave out annotations: to evaluate or store them costs time, and nothing reads them."""

    def __init__(self, module: str) -> None:
        self._module = module

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.ClassDef:
        if any("NamedTuple" in ast.unparse(base) for base in node.bases):
            raise UnsupportedError(
                f"{self._module}: {node.name} has its fields by annotations: use a dataclass"
            )
        self.generic_visit(node)
        return node

    def visit_arg(self, node: ast.arg) -> ast.arg:
        node.annotation = None
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
        self.generic_visit(node)
        node.returns = None
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.stmt:
        if node.value is None:
            return ast.copy_location(ast.Pass(), node)
        return ast.copy_location(ast.Assign([node.target], node.value), node)


class _Dataclasses(ast.NodeTransformer):
    """Write the methods that @dataclass would compile anew in every process."""

    def __init__(self, module: str) -> None:
        self._module = module

    def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.ImportFrom | None:
        if node.module != "dataclasses":
            return node
        names = {alias.name for alias in node.names}
        if names - {"dataclass", "field", "replace"}:
            raise UnsupportedError(f"{self._module}: dataclasses has {', '.join(sorted(names))}")
        node.module = _standin("dataclasses")
        shared = _SHARED if "dataclass" in names else ()
        wanted = [*(names & {"replace"}), *shared]
        node.names = [ast.alias(name) for name in wanted]
        return node if wanted else None

    def visit_Import(self, node: ast.Import) -> ast.Import:
        if any(alias.name == "dataclasses" for alias in node.names):
            raise UnsupportedError(f"{self._module}: 'import dataclasses', write 'from … import'")
        return node

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.ClassDef:
        self.generic_visit(node)
        options = {"frozen": False, "slots": False, "order": False}
        for decorator in node.decorator_list:
            call = decorator.func if isinstance(decorator, ast.Call) else decorator
            if not (isinstance(call, ast.Name) and call.id == "dataclass"):
                continue
            for keyword in decorator.keywords if isinstance(decorator, ast.Call) else ():
                if keyword.arg not in options or not isinstance(keyword.value, ast.Constant):
                    raise UnsupportedError(f"{self._module}: @dataclass({ast.unparse(keyword)})")
                options[keyword.arg] = bool(keyword.value.value)
            if len(node.decorator_list) > 1 or node.bases or node.keywords:
                raise UnsupportedError(
                    f"{self._module}: dataclass '{node.name}' is not a plain one"
                )
            node.decorator_list = []
            fields = [_Field(self._module, part) for part in node.body if _is_field(part)]
            node.body = [part for part in node.body if not _is_field(part)]
            node.body += ast.parse("\n".join(_methods(fields, options))).body
        return node


def _is_field(node: ast.stmt) -> bool:
    return isinstance(node, ast.AnnAssign)


class _Field:
    """One field: its name, and as source what its parameter's default is and where it gets it."""

    def __init__(self, module: str, node: ast.stmt) -> None:
        assert isinstance(node, ast.AnnAssign)
        assert isinstance(node.target, ast.Name)
        if "ClassVar" in ast.unparse(node.annotation) or "InitVar" in ast.unparse(node.annotation):
            raise UnsupportedError(f"{module}: {ast.unparse(node)}")
        self.name = node.target.id
        self.has_parameter = True
        self.default = None if node.value is None else ast.unparse(node.value)
        self.value = self.name
        call = node.value
        if not (isinstance(call, ast.Call) and getattr(call.func, "id", "") == "field"):
            return
        options = {keyword.arg: keyword.value for keyword in call.keywords}
        if call.args or set(options) not in ({"default_factory"}, {"default", "init"}):
            raise UnsupportedError(f"{module}: {ast.unparse(node)}")
        if "init" in options:
            if ast.unparse(options["init"]) != "False" or not isinstance(
                options["default"], ast.Constant
            ):
                raise UnsupportedError(f"{module}: {ast.unparse(node)}")
            self.has_parameter = False
            self.value = ast.unparse(options["default"])
        else:
            factory = options["default_factory"]
            if not isinstance(factory, ast.Name):
                raise UnsupportedError(f"{module}: {ast.unparse(node)}")
            self.default = "..."  # no field of ours takes it for a value
            self.value = f"{factory.id}() if {self.name} is ... else {self.name}"


def _methods(fields: Sequence[_Field], options: dict[str, bool]) -> Iterator[str]:
    """Give the lines of the class's further body, as dataclasses.dataclass would make it."""
    names = tuple(field.name for field in fields)
    yield f"__match_args__ = {tuple(field.name for field in fields if field.has_parameter)}"
    if options["slots"]:
        yield f"__slots__ = {names}"
    yield from _init(fields)
    mine, other = (f"({''.join(f'{of}.{name}, ' for name in names)})" for of in ("self", "other"))
    ordering = {"__lt__": "<", "__le__": "<=", "__gt__": ">", "__ge__": ">="}
    for method, operator in {"__eq__": "==", **(ordering if options["order"] else {})}.items():
        yield f"def {method}(self, other):"
        yield " if other.__class__ is self.__class__:"
        yield f"  return {mine} {operator} {other}"
        yield " return NotImplemented"
    yield f"__dataclass_fields__ = {names}"
    yield "__repr__ = show_fields"
    if options["frozen"]:
        yield "def __hash__(self):"
        yield f" return hash({mine})"
    else:
        yield "__hash__ = None"


def _init(fields: Sequence[_Field]) -> Iterator[str]:
    parameters = [
        field.name + ("" if field.default is None else f"={field.default}")
        for field in fields
        if field.has_parameter
    ]
    yield f"def __init__({', '.join(['self', *parameters])}):"
    yield " pass"
    for field in fields:
        yield f" self.{field.name} = {field.value}"

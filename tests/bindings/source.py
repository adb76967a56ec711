"""Our code as syntax trees with scopes: where each name is bound, and to what."""

from __future__ import annotations

import ast
from collections import defaultdict
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = ("engines", "calib", "var_export")
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


@dataclass(frozen=True)
class Binding:
    """One way in which a name gets its value."""

    kind: str
    """value, iterate, with, annotation, parameter, definition, import."""
    node: ast.AST
    scope: Scope
    path: tuple[int, ...] = ()
    """Where in an unpacked value; -1 - n: what a starred name takes, from place n on."""
    target: str = ""
    """Of an import: the dotted name."""


class Scope:
    """A module, class, function or comprehension."""

    def __init__(self, node, parent, module):
        self.node, self.parent, self.module = node, parent, module
        self.names = defaultdict(list)
        self.attributes = defaultdict(list)
        """Of a class: what is assigned to `self.name`."""
        self.returns = []
        """Of a function: the expressions that it returns."""
        name = getattr(node, "name", f"<{type(node).__name__}>")
        self.qualname = "" if parent is None else f"{parent.qualname}.{name}".lstrip(".")

    def find(self, name):
        """The scope that binds a name, as seen from here."""
        scope = self
        while scope is not None:
            if name in scope.names and (scope is self or not isinstance(scope.node, ast.ClassDef)):
                return scope
            scope = scope.parent
        return None

    @property
    def function(self):
        """The innermost function around, or None."""
        scope = self
        while scope is not None and not isinstance(scope.node, FUNCTIONS):
            scope = scope.parent
        return scope


class Source:
    """One module."""

    def __init__(self, name, text):
        self.name = name
        self.scopes = {}
        self.calls = []
        """Every call with its scope."""
        self.tree = ast.parse(text)
        self.scope = self._open(self.tree, None)
        for statement in self.tree.body:
            self._visit(statement, self.scope)

    def _open(self, node, parent):
        scope = self.scopes[node] = Scope(node, parent, self)
        return scope

    def _visit(self, node, scope):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            scope.names[node.name].append(Binding("definition", node, scope))
            inner = self._open(node, scope)
            for part in (*node.decorator_list, *(node.bases if isinstance(node, ast.ClassDef) else ())):
                self._visit(part, scope)
            if not isinstance(node, ast.ClassDef):
                self._parameters(node, scope, inner)
            for statement in node.body:
                self._visit(statement, inner)
            return
        if isinstance(node, ast.Lambda):
            inner = self._open(node, scope)
            self._parameters(node, scope, inner)
            self._visit(node.body, inner)
            return
        if isinstance(node, COMPREHENSIONS):
            inner = self._open(node, scope)
            for generator in node.generators:
                self._bind(generator.target, Binding("iterate", generator.iter, inner))
            for child in ast.iter_child_nodes(node):
                self._visit(child, inner)
            return
        if isinstance(node, ast.Call):
            self.calls.append((node, scope))
        elif isinstance(node, ast.Assign):
            for target in node.targets:
                self._bind(target, Binding("value", node.value, scope))
        elif isinstance(node, ast.AnnAssign):
            self._bind(node.target, Binding("annotation", node.annotation, scope))
            if node.value is not None:
                self._bind(node.target, Binding("value", node.value, scope))
        elif isinstance(node, (ast.AugAssign, ast.NamedExpr)):
            self._bind(node.target, Binding("value", node.value, scope))
        elif isinstance(node, (ast.For, ast.AsyncFor)):
            self._bind(node.target, Binding("iterate", node.iter, scope))
        elif isinstance(node, ast.withitem) and node.optional_vars is not None:
            self._bind(node.optional_vars, Binding("with", node.context_expr, scope))
        elif isinstance(node, ast.ExceptHandler) and node.name:
            scope.names[node.name].append(Binding("value", ast.Constant(None), scope))
        elif isinstance(node, ast.Return) and node.value is not None:
            scope.returns.append(node.value)
        elif isinstance(node, ast.Import):
            for alias in node.names:
                dotted = alias.name if alias.asname else alias.name.split(".")[0]
                scope.names[alias.asname or dotted].append(Binding("import", node, scope, target=dotted))
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                target = f"{node.module}.{alias.name}"
                scope.names[alias.asname or alias.name].append(Binding("import", node, scope, target=target))
        for child in ast.iter_child_nodes(node):
            self._visit(child, scope)

    def _parameters(self, node, scope, inner):
        arguments = node.args
        for argument in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs):
            inner.names[argument.arg].append(Binding("parameter", argument, inner))
        for argument in (arguments.vararg, arguments.kwarg):
            if argument is not None:
                inner.names[argument.arg].append(Binding("parameter", argument, inner))
        for default in (*arguments.defaults, *filter(None, arguments.kw_defaults)):
            self._visit(default, scope)

    def _bind(self, target, binding):
        if isinstance(target, ast.Name):
            binding.scope.names[target.id].append(binding)
        elif isinstance(target, ast.Attribute) and isinstance(target.value, ast.Name) and target.value.id == "self":
            function = binding.scope.function
            if function is not None and isinstance(function.parent.node, ast.ClassDef):
                function.parent.attributes[target.attr].append(binding)
        elif isinstance(target, (ast.Tuple, ast.List)):
            values = binding.node.elts if isinstance(binding.node, (ast.Tuple, ast.List)) else ()
            pairs = binding.kind == "value" and not binding.path and len(values) == len(target.elts)
            starred = any(isinstance(part, ast.Starred) for part in (*target.elts, *values))
            for place, part in enumerate(target.elts):
                if pairs and not starred:
                    self._bind(part, Binding("value", values[place], binding.scope))
                elif isinstance(part, ast.Starred):
                    self._bind(part.value, replace(binding, path=(*binding.path, -1 - place)))
                else:
                    self._bind(part, replace(binding, path=(*binding.path, place)))


class Project:
    """Modules that are held against the vendor, those `beside` them, and on demand what these import of ours.

    Calls are looked for in the first two: nothing else handles objects of the vendor.
    """

    def __init__(self, held, beside=()):
        self.near = (*held, *beside)
        self._near = {source.name: source for source in self.near}

    def module(self, name):
        """A module of ours by its dotted name, or None."""
        return self._near.get(name) or read(name)

    @cached_property
    def calls(self):
        """Calls by the last name of what is called."""
        found = defaultdict(list)
        for source in self.near:
            for call, scope in source.calls:
                function = call.func
                name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
                found[name].append((call, scope))
        return found

    @cached_property
    def references(self):
        """Names that are used other than by calling them, or as a type."""
        apart = {call.func for source in self.near for call, _ in source.calls}
        for source in self.near:
            for node in ast.walk(source.tree):
                for annotation in (getattr(node, "annotation", None), getattr(node, "returns", None)):
                    apart.update(ast.walk(annotation) if annotation is not None else ())
        nodes = [node for source in self.near for node in ast.walk(source.tree) if node not in apart]
        return {name for node in nodes if isinstance(getattr(node, "ctx", None), ast.Load) for name in _names(node)}

    def elsewhere(self, name):
        """Whether another module of ours uses this name."""
        for file in files():
            text = file.read_text(encoding="utf-8") if dotted(file) not in self._near else ""
            nodes = ast.walk(ast.parse(text)) if name in text else ()
            if any(name in _names(node) for node in nodes):
                return True
        return False


def _names(node):
    return {value for field in ("id", "attr", "name") if isinstance(value := getattr(node, field, None), str)}


@cache
def read(name):
    """A module of ours by its dotted name, or None."""
    stem = ROOT.joinpath(*name.split("."))
    files = (stem.with_suffix(".py"), stem / "__init__.py") if name.split(".")[0] in PACKAGES else ()
    file = next((f for f in files if f.is_file()), None)
    return Source(name, file.read_text(encoding="utf-8")) if file else None


@cache
def files():
    """Every module of ours."""
    return [file for package in PACKAGES for file in sorted((ROOT / package).rglob("*.py"))]


def dotted(file):
    """The name of a module of ours by its file."""
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")

"""Every use of the vendor's API in our code, held against one version of it.

Code that this version never reaches is left out: what stands behind a `hasattr` that is false here, or behind a
question for the other flavour. So a name may be missing from a version exactly where the code asks for it first.
"""

from __future__ import annotations

import ast
from collections import defaultdict
from dataclasses import dataclass, field

from tests.bindings.infer import Inference
from tests.bindings.source import COMPREHENSIONS, Project
from tests.bindings.values import UNKNOWN, Ours, Row, Vendor

FORWARDERS = ("engines.backends.cuda.Cuda.call",)
FLAVOURS = ("tensorrt", "tensorrt-rtx")
BY_NAME = ("getattr", "hasattr", "setattr")
ENDS = (ast.Return, ast.Raise, ast.Continue, ast.Break)


@dataclass
class Findings:
    """What a version has to say about our code."""

    problems: list[str] = field(default_factory=list)
    uses: dict[tuple[str, int, int], set[str]] = field(default_factory=lambda: defaultdict(set))
    """Module, line and column of each use: what is used, as IBuilderConfig.set_flag."""
    guards: dict[str, bool] = field(default_factory=dict)
    """Names that the code asks for before it uses them: whether this version has them."""
    entered: set[tuple[str, str]] = field(default_factory=set)
    """Module and name of every function and class that this version can enter."""

    def within(self, modules):
        """The part about some modules."""
        problems = [problem for problem in self.problems if problem.partition(":")[0] in modules]
        uses = {place: used for place, used in self.uses.items() if place[0] in modules}
        return Findings(problems, uses, self.guards, {e for e in self.entered if e[0] in modules})


def scan(sources, api, *, beside=(), names=None, forwarders=FORWARDERS):
    """Hold modules against one version; `beside` and `names` as for `Project` and `Inference`.

    What is only called by code that this version does not reach is not reached either: so this goes on until no
    more is found.
    """
    project, dead = Project(sources, beside), frozenset()
    while True:
        types = Inference(project, api, names=names, forwarders=forwarders, dead=dead)
        check = _Scan(types, api)
        for source in project.near:
            check.block(source.tree.body, source.scope, frozenset())
        found = dead | {scope for scope in _callable(project.near) if check.never_called(scope)}
        if found == dead:
            return check.findings.within({source.name for source in sources})
        dead = found


def _callable(sources):
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    return [scope for source in sources for node, scope in source.scopes.items() if isinstance(node, kinds)]


class _Scan:
    """`facts`: pairs (object, name), as they are written, that a `hasattr` has confirmed; also (object, isinstance)."""

    def __init__(self, inference, api):
        self.types, self.api = inference, api
        self.findings = Findings()
        self.calls = set()
        """Those that this version reaches."""

    def never_called(self, scope):
        """Whether a function or class of ours is called by unreached code alone."""
        name = scope.node.name
        sites = [call for _, call, _ in self.types.call_sites(scope)]
        if not sites or any(call in self.calls for call in sites) or name in self.types.project.references:
            return False
        return not self.types.project.elsewhere(name)

    def problem(self, node, scope, text):
        line = f"{scope.module.name}:{node.lineno}: {text}"
        if line not in self.findings.problems:
            self.findings.problems.append(line)

    # statements

    def block(self, statements, scope, facts):
        for statement in statements:
            if isinstance(statement, (ast.If, ast.While)):
                truth = self.branch(statement, scope, facts)
                for outcome, body in ((True, statement.body), (False, statement.orelse)):
                    if body and isinstance(body[-1], ENDS) and isinstance(statement, ast.If):
                        if truth is outcome:
                            return  # nothing after it is ever reached
                        facts = facts | _told(statement.test, not outcome)
                continue
            self.statement(statement, scope, facts)
            if isinstance(statement, ast.Assert):
                facts = facts | _told(statement.test, True)

    def branch(self, node, scope, facts):
        """Follow the branches that this version can take; which one that is, where it is only one."""
        self.expression(node.test, scope, facts)
        truth = self.truth(node.test, scope)
        if truth is not False:
            self.block(node.body, scope, facts | _told(node.test, True))
        if truth is not True:
            self.block(node.orelse, scope, facts | _told(node.test, False))
        return truth

    def statement(self, node, scope, facts):
        inner = scope.module.scopes.get(node)
        if inner in self.types.dead:
            return
        if inner is not None:
            self.findings.entered.add((scope.module.name, inner.qualname))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            for part in (*node.decorator_list, *node.args.defaults, *filter(None, node.args.kw_defaults)):
                self.expression(part, scope, facts)
            self.block(node.body, inner, facts)
            return
        if isinstance(node, ast.ClassDef):
            for part in (*node.decorator_list, *node.bases):
                self.expression(part, scope, facts)
            self.overrides(node, inner)
            self.block(node.body, inner, facts)
            return
        if isinstance(node, ast.Assign):
            self.unpacking(node, scope)
        for child in _children(node):
            if isinstance(child, list):
                self.block(child, scope, facts)
            else:
                self.expression(child, scope, facts)

    def overrides(self, node, scope):
        """Public methods of a class derived from the vendor's are called by the vendor, if it has such."""
        bases = [base for base in self.types.line(scope) if isinstance(base, Vendor)]
        for function in node.body if bases else ():
            if not isinstance(function, ast.FunctionDef) or function.name.startswith("_"):
                continue
            entries = [(b.name, self.api.entry(b.name, function.name)) for b in bases]
            owner = next((name for name, entry in entries if entry and entry["kind"] == "method"), None)
            if owner is None:
                base = " and ".join(b.name for b in bases)
                self.problem(function, scope, f"{self.api.title} calls no method {function.name} of {base}")
                continue
            self.use(function, scope, f"{owner}.{function.name}")
            taken = len(function.args.posonlyargs) + len(function.args.args)
            least = taken - len(function.args.defaults)
            given = [len(signature.parameters) for signature in self.api.signatures(owner, function.name)]
            if not any(least <= count <= taken for count in given):
                self.problem(function, scope, f"{self.api.title} calls {owner}.{function.name} with other arguments")

    def unpacking(self, node, scope):
        """The vendor's tuples have as many places as we take from them."""
        for target in node.targets:
            if not isinstance(target, ast.Tuple) or any(isinstance(part, ast.Starred) for part in target.elts):
                continue
            rows = [item for item in self.types.infer(node.value, scope) if isinstance(item, Row)]
            for row in rows:
                if len(row.items) != len(target.elts):
                    text = f"{ast.unparse(node.value)} gives {len(row.items)} values, not {len(target.elts)}"
                    self.problem(node, scope, f"{self.api.title}: {text}")

    # conditions

    def truth(self, node, scope):
        """What a condition is for this version; None where that depends on more."""
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            inner = self.truth(node.operand, scope)
            return None if inner is None else not inner
        if isinstance(node, ast.BoolOp):
            decisive = isinstance(node.op, ast.Or)
            parts = [self.truth(value, scope) for value in node.values]
            return decisive if decisive in parts else None if None in parts else not decisive
        if isinstance(node, ast.Compare):
            return self.flavour(node, scope)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "hasattr":
            names = self.types.strings(node.args[1], scope)
            items = [item for item in self.types.infer(node.args[0], scope) if isinstance(item, Vendor)]
            answers = {self.api.entry(i.name, name) is not None for i in items for name in names or ()}
            return answers.pop() if len(answers) == 1 else None
        return None

    def flavour(self, node, scope):
        """`flavour.name == "tensorrt-rtx"` is known for each version."""
        if not ast.unparse(node.left).endswith("flavour.name") or not isinstance(node.ops[0], (ast.Eq, ast.NotEq)):
            return None
        wanted = node.comparators[0]
        if not isinstance(wanted, ast.Constant) or wanted.value not in FLAVOURS:
            self.problem(node, scope, f"{ast.unparse(wanted)} is no flavour")
        elif self.api.product in FLAVOURS:
            return (self.api.product == wanted.value) is isinstance(node.ops[0], ast.Eq)
        return None

    # expressions

    def expression(self, node, scope, facts):
        if isinstance(node, ast.BoolOp):
            for value in node.values:
                self.expression(value, scope, facts)
                going_on = isinstance(node.op, ast.And)
                if self.truth(value, scope) is (not going_on):
                    return
                facts = facts | _told(value, going_on)
        elif isinstance(node, ast.IfExp):
            self.expression(node.test, scope, facts)
            truth = self.truth(node.test, scope)
            if truth is not False:
                self.expression(node.body, scope, facts | _told(node.test, True))
            if truth is not True:
                self.expression(node.orelse, scope, facts | _told(node.test, False))
        elif isinstance(node, COMPREHENSIONS):
            self.comprehension(node, scope.module.scopes[node], facts)
        elif isinstance(node, ast.Lambda):
            self.expression(node.body, scope.module.scopes[node], facts)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in BY_NAME:
            for argument in node.args:
                self.expression(argument, scope, facts)
            self.by_name(node, scope, facts)
        else:
            for child in _children(node):
                self.expression(child, scope, facts)
            if isinstance(node, ast.Attribute):
                items = self.types.infer(node.value, scope)
                if (ast.unparse(node.value), "isinstance") in facts:
                    items -= {UNKNOWN}
                self.attribute(node, scope, items, node.attr, writing=not isinstance(node.ctx, ast.Load))
            elif isinstance(node, ast.Call):
                self.calls.add(node)
                self.call(node, scope)

    def comprehension(self, node, inner, facts):
        for generator in node.generators:
            self.expression(generator.iter, inner, facts)
            if isinstance(generator.iter, ast.Call) and ast.unparse(generator.iter.func) == "dir":
                facts = facts | {(ast.unparse(generator.iter.args[0]), ast.unparse(generator.target))}
            for condition in generator.ifs:
                self.expression(condition, inner, facts)
                if self.truth(condition, inner) is False:
                    return
                facts = facts | _told(condition, True)
        for part in (node.key, node.value) if isinstance(node, ast.DictComp) else (node.elt,):
            self.expression(part, inner, facts)

    # the vendor's names

    def use(self, node, scope, what):
        self.findings.uses[scope.module.name, node.lineno, node.col_offset].add(what)

    def attribute(self, node, scope, items, name, *, writing=False):
        for item in items:
            if item == UNKNOWN:
                text = ast.unparse(node.args[0] if isinstance(node, ast.Call) else node.value)
                self.problem(
                    node, scope, f"what {text} is cannot be told, so neither whether it has {name}; annotate it"
                )
            elif isinstance(item, Vendor) and item.kind != "method":
                self._vendor_attribute(node, scope, item, name, writing)
            elif isinstance(item, Ours) and item.kind in ("class", "object"):
                self._inherited(node, scope, item, name, writing)

    def _vendor_attribute(self, node, scope, item, name, writing):
        entry = self.api.entry(item.name, name)
        path = f"{item.name}.{name}" if item.name else name
        self.use(node, scope, path)
        if entry is None:
            self.problem(node, scope, f"{self.api.title} has no {path}")
        elif writing and not (entry["kind"] == "property" and entry["writable"]):
            self.problem(node, scope, f"{path} cannot be set in {self.api.title}")

    def _inherited(self, node, scope, item, name, writing):
        """An attribute of a class of ours that is derived from the vendor's."""
        bases = []
        for base in self.types.line(item.scope):
            if isinstance(base, Vendor):
                bases.append(base)
            elif base is None or name in base.names or name in base.attributes:
                return
        for base in bases:
            if base is bases[-1] or self.api.entry(base.name, name) is not None:
                self._vendor_attribute(node, scope, Vendor(item.kind, base.name), name, writing)
                return

    def by_name(self, node, scope, facts):
        """getattr, hasattr and setattr."""
        asked = node.func.id == "hasattr" or (node.func.id == "getattr" and len(node.args) == 3)
        items = self.types.infer(node.args[0], scope)
        known = [item for item in items if isinstance(item, Vendor) and item.kind != "method"]
        names = self.types.strings(node.args[1], scope)
        confirmed = tuple(map(ast.unparse, node.args[:2])) in facts
        if asked or confirmed:
            for name in names or ():
                for item in known:
                    path = f"{item.name}.{name}" if item.name else name
                    self.findings.guards[path] = self.api.entry(item.name, name) is not None
                if UNKNOWN in items:
                    self.attribute(node, scope, {UNKNOWN}, name)
        elif names is not None:
            for name in sorted(names):
                self.attribute(node, scope, items, name, writing=node.func.id == "setattr")
        elif known or UNKNOWN in items:
            self.problem(node, scope, f"{ast.unparse(node)} may ask for any name; ask hasattr first")

    # calls

    def call(self, node, scope):
        for item in self.types.infer(node.func, scope):
            if isinstance(item, Vendor):
                self._vendor_call(node, scope, item)
            elif isinstance(item, Ours) and item.kind == "function" and self.types.forwards(item):
                self._forwarded(node, scope, item)
            elif item == UNKNOWN and not isinstance(node.func, ast.Attribute):
                self.problem(node, scope, f"what {ast.unparse(node.func)} calls cannot be told; annotate it")

    def _vendor_call(self, node, scope, item):
        owner, name = (item.name, "__init__") if item.kind == "class" else (item.owner, item.name)
        if item.kind in ("module", "object") or self.api.entry(owner, name) is None:
            self.problem(node, scope, f"{self.api.title}: {ast.unparse(node.func)} cannot be called")
            return
        function = scope.function
        within = function is not None and self.types.forwards(Ours("function", function))
        if not within:  # what a forwarder calls is checked where the forwarder is called
            self._fits(node, scope, owner, name, node.args, node.keywords, bound=item.bound or item.kind == "class")

    def _forwarded(self, node, scope, function):
        """A call through one of the forwarders: the name of a function of CUDA, its arguments, and keywords of ours."""
        if self.api.product != "cuda":
            return
        ours = {argument.arg for argument in function.scope.node.args.kwonlyargs}
        keywords = [keyword for keyword in node.keywords if keyword.arg not in ours]
        names = self.types.strings(node.args[0], scope) if node.args else None
        if names is None:
            self.problem(node, scope, f"which function {ast.unparse(node)} calls cannot be told; write its name")
        for name in sorted(names or ()):
            entry = self.api.entry("", name)
            self.use(node, scope, name)
            if entry is None or entry["kind"] != "method":
                self.problem(node, scope, f"{self.api.title} has no function {name}")
            else:
                self._fits(node, scope, "", name, node.args[1:], keywords, bound=False)

    def _fits(self, node, scope, owner, name, arguments, keywords, *, bound):
        path = f"{owner}.{name}" if owner else name
        if any(isinstance(a, ast.Starred) for a in arguments) or any(keyword.arg is None for keyword in keywords):
            self.problem(node, scope, f"what {path} is called with cannot be told; write the arguments out")
            return
        values = dict(enumerate(arguments)) | {keyword.arg: keyword.value for keyword in keywords}
        signatures = self.api.signatures(owner, name)
        for signature in signatures:
            fitting = signature.without_first() if bound else signature
            taken = fitting.assign(len(arguments), [keyword.arg for keyword in keywords])
            if taken is not None and all(self._agrees(values[key], scope, p) for key, p in taken.items()):
                return
        texts = " or ".join(signature.text for signature in signatures) or "nothing that is known"
        self.problem(node, scope, f"{self.api.title} has no {path} for {ast.unparse(node)}; it has {texts}")

    def _agrees(self, node, scope, parameter):
        """An object of the vendor's is one of the class that the parameter wants."""
        wanted = self.types.typed(parameter.type) if parameter.type else frozenset()
        given = {base for item in self.types.infer(node, scope) for base in self._vendor_classes(item)}
        if not all(isinstance(item, Vendor) for item in wanted) or not wanted or not given or None in given:
            return True
        return any(self.api.is_a(base, item.name) for base in given for item in wanted)

    def _vendor_classes(self, item):
        if isinstance(item, Vendor) and item.kind == "object":
            return {item.name}
        if isinstance(item, Ours) and item.kind == "object":
            return {base.name for base in self.types.line(item.scope) if isinstance(base, Vendor)} or {None}
        return {None}


def _told(test, outcome):
    """What a condition says of (object, name) pairs when it comes out so."""
    if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
        return _told(test.operand, not outcome)
    if isinstance(test, ast.BoolOp) and isinstance(test.op, ast.And if outcome else ast.Or):
        return frozenset().union(*(_told(value, outcome) for value in test.values))
    if not outcome or not isinstance(test, ast.Call) or not isinstance(test.func, ast.Name) or not test.args:
        return frozenset()
    if test.func.id == "isinstance":
        return frozenset({(ast.unparse(test.args[0]), "isinstance")})
    return frozenset({tuple(map(ast.unparse, test.args))} if test.func.id == "hasattr" else ())


def _children(node):
    """Expressions in a node, and its blocks of statements as lists; no annotations."""
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns"):
            continue
        parts = value if isinstance(value, list) else [value]
        if parts and isinstance(parts[0], ast.stmt):
            yield parts
            continue
        for part in parts:
            if isinstance(part, (ast.ExceptHandler, ast.withitem, ast.keyword, ast.match_case, ast.comprehension)):
                yield from _children(part)
            elif isinstance(part, ast.expr):
                yield part

"""What calls pass: the values of parameters, and the names of the vendor's that the code makes at run time."""

from __future__ import annotations

import ast

from tests.bindings.values import PLAIN, UNKNOWN, Box, Ours, every, union


class Calls:
    """Part of `Inference`."""

    def _parameter(self, argument, scope):
        node = scope.node
        arguments = node.args
        if argument in (arguments.vararg, arguments.kwarg):
            inner = self.annotation(argument.annotation, scope.parent) if argument.annotation else frozenset({UNKNOWN})
            return frozenset({Box(inner, PLAIN if argument is arguments.kwarg else None)})
        places = places_of(node)
        if isinstance(scope.parent.node, ast.ClassDef) and places and argument is places[0]:
            decorators = {ast.unparse(d) for d in node.decorator_list}
            if "staticmethod" not in decorators:
                return frozenset({Ours("class" if "classmethod" in decorators else "object", scope.parent)})
        if argument.annotation is not None:
            declared = self.annotation(argument.annotation, scope.parent)
            if declared != {UNKNOWN}:
                return declared
        found = [self.argument(function, call, where, argument.arg) for function, call, where in self.call_sites(scope)]
        return union(found) if found else frozenset({UNKNOWN})

    def call_sites(self, scope):
        """Where the held modules call a function of ours: (function, call, scope of the call)."""
        name = getattr(scope.node, "name", "")
        if name == "__init__":
            name = scope.parent.node.name
        for call, where in self.project.calls[name]:
            for item in self.infer(call.func, where):
                if isinstance(item, Ours) and item.kind == "function" and item.scope is scope:
                    yield item, call, where
                elif isinstance(item, Ours) and item.kind == "class" and item.scope in (scope, scope.parent):
                    yield Ours("function", scope, True), call, where

    def argument(self, function, call, scope, name):
        """What a call passes for a parameter of ours."""
        node = self._passed(function, call, name)
        if node is None:
            return frozenset({UNKNOWN})
        given = node in {*call.args, *(keyword.value for keyword in call.keywords)}
        return self.infer(node, scope if given else function.scope.parent)

    def _passed(self, function, call, name):
        """The expression that a call passes for a parameter, or the default."""
        for keyword in call.keywords:
            if keyword.arg == name:
                return keyword.value
        places = [a.arg for a in places_of(function.scope.node)][1 if function.bound else 0 :]
        if name in places:
            place = places.index(name)
            if any(isinstance(argument, ast.Starred) for argument in call.args[: place + 1]):
                return None
            if place < len(call.args):
                return call.args[place]
        arguments = function.scope.node.args
        defaults = dict(zip([a.arg for a in arguments.kwonlyargs], arguments.kw_defaults, strict=True))
        last = places_of(function.scope.node)[-len(arguments.defaults) :] if arguments.defaults else ()
        return (defaults | dict(zip([a.arg for a in last], arguments.defaults, strict=True))).get(name)

    # names that are made at run time

    def strings(self, node, scope):
        """Every text that an expression can be; None where that cannot be told."""
        if isinstance(node, ast.Constant):
            return {node.value} if isinstance(node.value, str) else None
        if isinstance(node, ast.IfExp):
            return every(self.strings(part, scope) for part in (node.body, node.orelse))
        if isinstance(node, ast.JoinedStr):
            known = self.names.get(ast.unparse(node))
            return set(known) if known is not None else None
        if isinstance(node, ast.Subscript):
            table = self._table(node.value, scope)
            return every(self.strings(value, scope) for value in table.values) if isinstance(table, ast.Dict) else None
        if isinstance(node, ast.Name) and node not in self._asked:
            owner = scope.find(node.id)
            self._asked.append(node)
            found = every(self._strings_of(binding) for binding in owner.names[node.id]) if owner else None
            self._asked.pop()
            return found
        return None

    def _strings_of(self, binding):
        if binding.path:
            return None
        if binding.kind == "value":
            return self.strings(binding.node, binding.scope)
        if binding.kind == "iterate":
            table = self._table(binding.node, binding.scope)
            parts = table.elts if isinstance(table, (ast.Tuple, ast.List)) else None
            return every(self.strings(part, binding.scope) for part in parts) if parts else None
        if binding.kind == "parameter":
            passed = [
                (self._passed(function, call, binding.node.arg), where)
                for function, call, where in self.call_sites(binding.scope)
            ]
            return every(self.strings(node, where) if node is not None else None for node, where in passed)
        return None

    def _table(self, node, scope):
        """The literal that a name stands for."""
        if not isinstance(node, ast.Name):
            return node
        owner = scope.find(node.id)
        for binding in owner.names[node.id] if owner else ():
            if binding.kind == "value":
                return binding.node
            if binding.kind == "import":
                parent, _, original = binding.target.rpartition(".")
                module = self.project.module(parent)
                return self._table(ast.Name(original), module.scope) if module is not None else None
        return None


def places_of(function):
    """The parameters that take arguments by position."""
    return [*function.args.posonlyargs, *function.args.args]

"""Any recipe as a Qt form: a row for each option, with its range, its unit and its help."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from typing import Any

import ctk
import qt
from slicer.i18n import tr as _

from FewShotSegLib.errors import InputError
from FewShotSegSlicer.Signal import Signal

Option = Mapping[str, Any]

_UNITS = {"_mm": " mm", "_px": " px", "_deg": "°", "_ml": " ml", "_seconds": " s", "_s": " s"}
_ACRONYMS = {"mlp": "MLP", "sd": "SD", "lora": "LoRA"}
_ANY_NUMBER = 1_000_000
_NARROWEST = 50  # pixels of one number in a row


class RecipeForm:
    """Options that everybody decides on top, the others in closed groups below.

    `options` is what `FewShotSegLib.data.recipe.describe` says of a recipe class: methods need torch, so their worker
    describes them, and nothing here imports one. `changed` tells of every edit.
    """

    def __init__(self, options: Sequence[Option], parent: Any) -> None:
        self.changed = Signal()
        self._isWriting = True
        self._rows: dict[str, _Row] = {}
        self._parts: dict[str, RecipeForm] = {}
        self.widget = qt.QWidget(parent)
        layout = qt.QVBoxLayout(self.widget)
        layout.setContentsMargins(0, 0, 0, 0)
        self._addRows(layout, [option for option in options if not option["advanced"]])
        self._open = frozenset(self._rows)
        advanced = [option for option in options if option["advanced"]]
        if advanced:
            self._addRows(_group(layout, _("Advanced"), _("Options that rarely need changing.")), advanced)
        for option in options:
            if option["kind"] == "recipe":
                self._addPart(layout, option)
        self._isWriting = False

    def recipe(self) -> dict[str, Any]:
        """What differs from the defaults, as the recipe of a job; empty when nothing does."""
        rows = {name: row.value() for name, row in self._rows.items() if row.isChanged()}
        parts = {name: part.recipe() for name, part in self._parts.items()}
        return rows | {name: part for name, part in parts.items() if part}

    def setRecipe(self, values: Mapping[str, Any]) -> None:
        """Show the defaults with `values` on top; a name that is no option raises `InputError`."""
        unknown = sorted(set(values) - set(self._rows) - set(self._parts))
        if unknown:
            known = ", ".join([*self._rows, *self._parts])
            raise InputError(f'The recipe has no option "{unknown[0]}"; it has {known}.')
        self._isWriting = True
        for name, row in self._rows.items():
            row.setValue(values.get(name, row.default))
        self._isWriting = False
        for name, part in self._parts.items():
            part.setRecipe(values.get(name, {}))

    def rowLabels(self) -> list[Any]:
        """The labels of the open rows, for a column of the same width as that of other forms."""
        return [row.label for name, row in self._rows.items() if name in self._open]

    def _addRows(self, layout: Any, options: Sequence[Option]) -> None:
        form = qt.QFormLayout()
        form.setFieldGrowthPolicy(qt.QFormLayout.AllNonFixedFieldsGrow)
        for option in options:
            if option["kind"] != "recipe":
                row = _Row(option, self.widget, self._onEdit)
                form.addRow(row.label, row.widget)
                self._rows[option["name"]] = row
        layout.addLayout(form)

    def _onEdit(self, name: str) -> None:
        if not self._isWriting:
            self._rows[name].showChanged()
            self.changed()

    def _addPart(self, layout: Any, option: Option) -> None:
        flat = [{**inner, "advanced": False} for inner in option["options"]]  # one closed group is hidden enough
        inside = _group(layout, _(option["help"]) or _title(option["name"]), "")
        part = RecipeForm(flat, self.widget)
        part.changed.connect(self.changed)
        inside.addWidget(part.widget)
        self._parts[option["name"]] = part


def _group(layout: Any, title: str, tip: str) -> Any:
    """Add a closed group to `layout` and return the layout inside it."""
    group = ctk.ctkCollapsibleGroupBox()
    group.setTitle(title)
    group.setToolTip(tip)
    inside = qt.QVBoxLayout(group)
    inside.setContentsMargins(6, 4, 6, 6)
    layout.addWidget(group)
    group.collapsed = True
    return inside


# ---------------------------------------------------------------------------------------------------------------- rows


class _Row:
    """One option: a label, and a widget with how to read and to write it."""

    def __init__(self, option: Option, parent: Any, onEdit: Callable[[str], None]) -> None:
        self.default = option["default"]
        self.widget, self.value, self._write = _editor(option, parent, lambda *_values: onEdit(option["name"]))
        self.label = qt.QLabel(_title(option["name"]) + ":", parent)
        for part in (self.label, self.widget):
            part.setToolTip(_tip(option))
        self._write(self.default)

    def setValue(self, value: Any) -> None:
        self._write(value)
        self.showChanged()

    def isChanged(self) -> bool:
        return bool(self.value() != self.default)

    def showChanged(self) -> None:
        """Changed options stand out."""
        self.label.setStyleSheet("font-weight: bold" if self.isChanged() else "")


Editor = tuple[Any, Callable[[], Any], Callable[[Any], None]]  # a widget, how to read it, how to write it


def _editor(option: Option, parent: Any, onEdit: Callable[..., None]) -> Editor:
    kind = option["kind"]
    if kind == "choice":
        return _choice({str(value): value for value in option["choices"]}, option, parent, onEdit)
    if kind == "bool" and option["optional"]:
        return _choice({_("Yes"): True, _("No"): False}, option, parent, onEdit)
    if kind == "bool":
        return _check(parent, onEdit)
    if kind == "list" and option["any_length"]:
        return _texts(option, parent, onEdit)
    if kind == "str":
        return _text(option, parent, onEdit)
    if kind == "list":
        editor = _numbers(option, parent, onEdit)
    else:
        editor = _number(option, kind, option["default"], parent, onEdit)
    return _orNone(editor, parent, onEdit) if option["optional"] else editor


def _choice(values: Mapping[str, Any], option: Option, parent: Any, onEdit: Callable[..., None]) -> Editor:
    texts = {_("Automatic"): None, **values} if option["optional"] else values
    box = qt.QComboBox(parent)
    box.addItems(list(texts))
    box.connect("currentIndexChanged(int)", onEdit)
    known = list(texts.values())
    return box, lambda: known[box.currentIndex], lambda value: box.setCurrentIndex(known.index(value))


def _check(parent: Any, onEdit: Callable[..., None]) -> Editor:
    box = qt.QCheckBox(parent)
    box.connect("toggled(bool)", onEdit)
    return box, lambda: box.checked, box.setChecked


def _text(option: Option, parent: Any, onEdit: Callable[..., None]) -> Editor:
    """An empty field is none, where that is allowed."""
    edit = qt.QLineEdit(parent)
    edit.connect("textChanged(QString)", onEdit)
    none = None if option["optional"] else ""
    return edit, lambda: edit.text or none, lambda value: edit.setText(value or "")


def _number(option: Option, kind: str, shown: float | None, parent: Any, onEdit: Callable[..., None]) -> Editor:
    low = -_ANY_NUMBER if option["min"] is None else option["min"]
    high = _ANY_NUMBER if option["max"] is None else option["max"]
    if kind == "int":
        box = qt.QSpinBox(parent)
        box.connect("valueChanged(int)", onEdit)
    else:
        box = qt.QDoubleSpinBox(parent)
        box.setDecimals(_decimals(shown or 1.0) + (2 if abs(shown or 1.0) < 0.01 else 1))
        box.setSingleStep(10.0 ** -_decimals(shown or 1.0))
        box.connect("valueChanged(double)", onEdit)
    box.setRange(low, high)
    box.setSuffix(_unit(option["name"]))

    def write(value: Any) -> None:
        if kind == "float":  # the box rounds to its decimals; a value that came from elsewhere keeps all of its own
            box.setDecimals(max(box.decimals, _decimals(value)))
        box.setValue(value)

    return box, lambda: round(box.value, box.decimals) if kind == "float" else box.value, write


def _orNone(editor: Editor, parent: Any, onEdit: Callable[..., None]) -> Editor:
    """A number that may be left to the program: behind a check box."""
    number, read, write = editor
    widget, check = qt.QWidget(parent), qt.QCheckBox(_("Set"), parent)
    layout = qt.QHBoxLayout(widget)
    layout.setContentsMargins(0, 0, 0, 0)
    layout.addWidget(check)
    layout.addWidget(number, 1)
    check.connect("toggled(bool)", number.setEnabled)
    check.connect("toggled(bool)", onEdit)
    number.setEnabled(False)

    def writeOrNone(value: Any) -> None:
        check.setChecked(value is not None)
        if value is not None:
            write(value)

    return widget, lambda: read() if check.checked else None, writeOrNone


def _numbers(option: Option, parent: Any, onEdit: Callable[..., None]) -> Editor:
    """Some numbers in a row, such as the ends of a range."""
    widget = qt.QWidget(parent)
    layout = qt.QHBoxLayout(widget)
    layout.setContentsMargins(0, 0, 0, 0)
    shown = option["default"] or [None] * len(option["parts"])
    editors = [_number(option, kind, value, widget, onEdit) for kind, value in zip(option["parts"], shown, strict=True)]
    for box, _read, _write in editors:
        # Not as wide as its largest value would be: three of them share a narrow panel.
        box.setSizePolicy(qt.QSizePolicy.Ignored, qt.QSizePolicy.Fixed)
        box.setMinimumWidth(_NARROWEST)
        layout.addWidget(box, 1)

    def write(values: Sequence[Any]) -> None:
        for (_box, _read, writeOne), value in zip(editors, values, strict=True):
            writeOne(value)

    return widget, lambda: [read() for _box, read, _write in editors], write


def _texts(option: Option, parent: Any, onEdit: Callable[..., None]) -> Editor:
    """A list of any length: separated by commas; none for an empty field where none is allowed."""
    edit = qt.QLineEdit(parent)
    edit.setPlaceholderText(_("separated by commas"))
    edit.connect("textChanged(QString)", onEdit)
    kind = {"int": int, "float": float}.get(option["parts"][0], str)

    def read() -> Any:
        words = [word.strip() for word in edit.text.split(",") if word.strip()]
        if not words and option["optional"]:
            return None
        return [_valueOf(word, kind) for word in words]

    return edit, read, lambda values: edit.setText(", ".join(str(value) for value in values or ()))


def _valueOf(word: str, kind: Callable[[str], Any]) -> Any:
    """The word as a number; what is none stays a word, for the recipe to refuse with a sentence of its own."""
    try:
        return kind(word)
    except ValueError:
        return word


# --------------------------------------------------------------------------------------------------------------- words


def _unit(name: str) -> str:
    return next((unit for end, unit in _UNITS.items() if name.endswith(end)), "")


def _title(name: str) -> str:
    """`blur_sigma_px` -> "Blur sigma": the unit stands behind the number."""
    for end in _UNITS:
        name = name.removesuffix(end)
    words = " ".join(_ACRONYMS.get(word, word) for word in name.split("_"))
    return _(words[:1].upper() + words[1:])


def _tip(option: Option) -> str:
    """The help, the range, the default, and the name for scripts."""
    low, high = option["min"], option["max"]
    limits = [f"{word} {value}" for word, value in ((_("from"), low), (_("to"), high)) if value is not None]
    default = _("automatic") if option["default"] is None else option["default"]
    sentences = [_(option["help"]) + ".", *([" ".join(limits).capitalize() + "."] if limits else [])]
    return " ".join([*sentences, _("Default: {value}.").format(value=default), f"({option['name']})"])


def _decimals(value: float) -> int:
    """Digits behind the point, at least one: 0.003 has three."""
    exponent = Decimal(repr(float(value))).as_tuple().exponent
    return min(max(-int(exponent), 1), 9)

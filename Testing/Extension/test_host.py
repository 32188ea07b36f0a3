"""The test host: what is Slicer's own works here, and what Slicer refuses is refused."""

from __future__ import annotations

import functools
import shutil
import subprocess
import sys
import textwrap
import threading
import time

import numpy as np
import pytest

from Testing.SlicerHost import whyUnavailable

if reason := whyUnavailable():
    pytest.skip(reason, allow_module_level=True)

import ctk
import qt
import slicer
import slicer.util
import vtk

if not type(slicer.app).__module__.startswith("Testing."):
    pytest.skip("In Slicer there is no host to test.", allow_module_level=True)

from Testing.SlicerHost import EventLoop
from Testing.SlicerHost.Overloads import removed

AFFINE = np.array([[-1.5, 0, 0, 96], [0, -1.5, 0, 96], [0, 0, 2.5, -75], [0, 0, 0, 1.0]])
VIEWS = ("Red", "Yellow", "Green")


@pytest.fixture
def volume(scene):
    array = np.random.default_rng(0).integers(-200, 300, (60, 128, 128)).astype(np.int16)
    node = slicer.util.addVolumeFromArray(array, AFFINE, "CT")
    slicer.util.setSliceViewerLayers(background=node, fit=True)
    return node


@pytest.fixture
def segmentation(volume):
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "Organs")
    node.CreateDefaultDisplayNodes()
    node.SetReferenceImageGeometryParameterFromVolumeNode(volume)
    liver = node.GetSegmentation().AddEmptySegment("liver", "Liver", (0.9, 0.1, 0.1))
    node.GetSegmentation().AddEmptySegment("spleen", "Spleen", (0.1, 0.1, 0.9))
    mask = np.zeros((60, 128, 128), np.uint8)
    mask[:, 40:80, 40:80] = 1
    slicer.util.updateSegmentBinaryLabelmapFromArray(mask, node, liver, volume)
    return node


@pytest.fixture
def loadUi(tmp_path):
    def load(widgets, connections=""):
        path = tmp_path / "Form.ui"
        path.write_text(
            f'<ui version="4.0"><class>Form</class><widget class="qMRMLWidget" name="Form">'
            f'<layout class="QVBoxLayout">{widgets}</layout></widget><connections>{connections}</connections></ui>'
        )
        return slicer.util.loadUI(str(path))

    return load


def item(kind, name, properties=""):
    return f'<item><widget class="{kind}" name="{name}">{properties}</widget></item>'


SELECTOR = item(
    "qMRMLNodeComboBox",
    "selector",
    '<property name="nodeTypes"><stringlist><string>vtkMRMLScalarVolumeNode</string></stringlist></property>',
)
SCENE_TO_SELECTOR = (
    "<connection><sender>Form</sender><signal>mrmlSceneChanged(vtkMRMLScene*)</signal>"
    "<receiver>selector</receiver><slot>setMRMLScene(vtkMRMLScene*)</slot></connection>"
)


# ------------------------------------------------------------------ scene, views and events


def test_a_click_places_a_control_point_exactly_where_it_was_clicked(volume, clickIn):
    points = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLMarkupsFiducialNode")
    slicer.modules.markups.logic().SetActiveList(points)
    interaction = slicer.app.applicationLogic().GetInteractionNode()
    for count, viewName in enumerate(VIEWS, start=1):
        interaction.SetCurrentInteractionMode(interaction.Place)
        clickIn(viewName, (100, 120))
        sliceNode = slicer.app.layoutManager().sliceWidget(viewName).mrmlSliceNode()
        assert points.GetNumberOfDefinedControlPoints() == count
        placed = points.GetNthControlPointPositionWorld(count - 1)
        np.testing.assert_allclose(placed, sliceNode.GetXYToRAS().MultiplyPoint((100, 120, 0, 1))[:3], atol=1e-6)


def test_a_position_in_mm_and_its_pixel_are_the_same_click(volume, clickIn):
    crosshair = slicer.mrmlScene.GetFirstNodeByClass("vtkMRMLCrosshairNode")
    cursor = [0.0, 0.0, 0.0]
    clickIn("Green", (20.0, 0.0, -10.0))
    assert crosshair.GetCursorPositionRAS(cursor)
    np.testing.assert_allclose(cursor, (20, 0, -10), atol=0.5)


def test_a_drag_moves_a_control_point(volume, clickIn, dragIn, snapshot):
    points = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLMarkupsFiducialNode")
    points.AddControlPoint(0, 0, 0)
    snapshot("Red")
    dragIn("Red", (0, 0, 0), (30, 20, 0))
    np.testing.assert_allclose(points.GetNthControlPointPositionWorld(0), (30, 20, 0), atol=1)


def test_modifiers_and_buttons_reach_an_observer_of_the_interactor(volume, clickIn):
    interactor = slicer.app.layoutManager().sliceWidget("Red").sliceView().interactor()
    seen = []

    def see(caller, event):
        seen.append((event, caller.GetControlKey()))

    beforeTheStyle = 1.0  # which ends what it handles
    tags = [interactor.AddObserver(f"{b}ButtonPressEvent", see, beforeTheStyle) for b in ("Left", "Right")]
    clickIn("Red", (50, 60), control=True)
    clickIn("Red", (50, 60), button="Right")
    for tag in tags:
        interactor.RemoveObserver(tag)
    assert seen == [("LeftButtonPressEvent", 1), ("RightButtonPressEvent", 0)]


def test_the_wheel_scrolls_by_one_slice(volume, mouse):
    logic = slicer.app.layoutManager().sliceWidget("Red").sliceLogic()
    before = logic.GetSliceOffset()
    mouse.move("Red", (50, 50))
    mouse.wheel("Red", 2)
    assert logic.GetSliceOffset() - before == pytest.approx(5.0)


def test_a_shortcut_of_the_main_window_fires_until_it_is_removed(slicerHost, pressKey):
    pressed = []
    shortcut = qt.QShortcut(qt.QKeySequence("Ctrl+Z"), slicer.util.mainWindow())
    shortcut.connect("activated()", lambda: pressed.append("undo"))
    pressKey("Ctrl+Z")
    pressKey("Z")
    shortcut.setParent(None)
    shortcut.deleteLater()
    pressKey("Ctrl+Z")
    assert pressed == ["undo"]


def test_qt_mouse_events_reach_the_interactor_with_the_y_axis_upwards(volume):
    view = slicer.app.layoutManager().sliceWidget("Red").sliceView()
    event = qt.QMouseEvent(
        qt.QEvent.MouseMove, qt.QPointF(30, 10), qt.QPointF(30, 10), qt.Qt.NoButton, qt.Qt.NoButton, qt.Qt.NoModifier
    )
    qt.QApplication.sendEvent(view, event)
    assert view.interactor().GetEventPosition() == (30, view.height - 1 - 10)


def test_a_snapshot_shows_volume_and_segment(scene, snapshot, request):
    assert np.ptp(snapshot("Red")) == 0
    request.getfixturevalue("volume")
    grey = snapshot("Red").astype(int)
    assert np.ptp(grey) > 100
    assert np.all(grey[..., 0] == grey[..., 1])
    request.getfixturevalue("segmentation")
    assert np.any(np.abs(np.diff(snapshot("Red").astype(int), axis=-1)) > 20)


def test_a_paused_view_renders_when_resumed(volume, runUntil):
    view = slicer.app.layoutManager().sliceWidget("Red").sliceView()
    view.forceRender()
    frames = []
    tag = view.renderWindow().AddObserver("EndEvent", lambda *_: frames.append(1))
    with slicer.util.RenderBlocker():
        slicer.app.layoutManager().sliceWidget("Red").sliceLogic().SetSliceOffset(5)
        started = time.monotonic()
        runUntil(lambda: time.monotonic() > started + 0.03)
        assert not frames
    runUntil(lambda: frames)
    view.renderWindow().RemoveObserver(tag)


# ------------------------------------------------------------------ files


@pytest.mark.parametrize("name", ["scene.mrb", "folder"])
def test_a_saved_scene_comes_back_with_its_arrays_and_tags(name, segmentation, tmp_path):
    array = slicer.util.arrayFromVolume(slicer.util.getNode("CT")).copy()
    segmentation.GetSegmentation().GetSegment("liver").SetTag("FewShotSeg.Test", '{"slice": 3}')
    assert slicer.util.saveScene(str(tmp_path / name))
    slicer.mrmlScene.Clear(0)
    slicer.util.loadScene(str(tmp_path / (name if name.endswith(".mrb") else "folder/folder.mrml")))
    volume, segmentation = slicer.util.getNode("CT"), slicer.util.getNode("Organs")
    np.testing.assert_array_equal(slicer.util.arrayFromVolume(volume), array)
    assert slicer.util.arrayFromSegmentBinaryLabelmap(segmentation, "liver", volume).sum() == 60 * 40 * 40
    tag = vtk.reference("")
    assert segmentation.GetSegmentation().GetSegment("liver").GetTag("FewShotSeg.Test", tag)
    assert str(tag) == '{"slice": 3}'


def test_volume_and_segmentation_survive_their_files(segmentation, tmp_path):
    volume = slicer.util.getNode("CT")
    assert slicer.util.saveNode(volume, str(tmp_path / "CT.nrrd"))
    assert slicer.util.saveNode(segmentation, str(tmp_path / "Organs.seg.nrrd"))
    loaded = slicer.util.loadVolume(str(tmp_path / "CT.nrrd"))
    np.testing.assert_array_equal(slicer.util.arrayFromVolume(loaded), slicer.util.arrayFromVolume(volume))
    composite = slicer.app.layoutManager().sliceWidget("Red").mrmlSliceCompositeNode()
    assert composite.GetBackgroundVolumeID() == loaded.GetID()
    names = slicer.util.loadSegmentation(str(tmp_path / "Organs.seg.nrrd")).GetSegmentation()
    assert [names.GetNthSegment(i).GetName() for i in range(2)] == ["Liver", "Spleen"]


def test_loading_a_missing_file_raises(scene, tmp_path):
    with pytest.raises(RuntimeError, match="Failed to load"):
        slicer.util.loadVolume(str(tmp_path / "nothing.nrrd"))


def test_nodes_with_data_have_an_item_in_the_subject_hierarchy(segmentation):
    hierarchy = slicer.mrmlScene.GetSubjectHierarchyNode()
    assert hierarchy.GetItemDataNode(hierarchy.GetItemByDataNode(segmentation)) is segmentation
    count = hierarchy.GetNumberOfItems()
    slicer.mrmlScene.RemoveNode(segmentation)
    assert hierarchy.GetNumberOfItems() == count - 1


def test_settings_stay_in_the_hosts_own_folder(slicerHost):
    qt.QSettings().setValue("FewShotSeg/Test", "kept")
    assert slicerHost.userSettings().value("FewShotSeg/Test") == "kept"
    assert qt.QSettings().fileName().startswith(slicerHost.temporaryPath)


# ------------------------------------------------------------------ PythonQt's rules


def test_a_property_is_an_attribute_and_no_method(slicerHost):
    button = qt.QPushButton("Apply")
    button.toolTip = "Segments"
    assert (button.text, button.toolTip, button.enabled) == ("Apply", "Segments", True)
    button.setText("Stop")
    with pytest.raises(TypeError):
        button.text()
    with pytest.raises(AttributeError, match="cannot be set"):
        button.height = 3
    with pytest.raises(TypeError, match="does not take"):
        button.enabled = object()


def test_a_plain_widget_takes_no_new_attribute_but_a_python_subclass_does(slicerHost):
    class Mine(qt.QLabel):
        pass

    mine, label = Mine(), qt.QLabel()
    mine.note = 3
    assert mine.note == 3
    for widget in (label, ctk.ctkSliderWidget(), qt.QListWidgetItem("row")):
        with pytest.raises(AttributeError, match="note"):
            widget.note = 3


def test_children_and_dynamic_properties_are_attributes(slicerHost):
    parent = qt.QWidget()
    child = qt.QLabel("text", parent)
    child.name = "hint"
    child.setProperty("SlicerParameterName", "threshold")
    assert parent.hint.text == "text"
    assert (child.objectName, child.SlicerParameterName, child.className()) == ("hint", "threshold", "QLabel")
    with pytest.raises(AttributeError, match="nothing"):
        _ = parent.nothing


@pytest.mark.parametrize("signature", ["clickd(bool)", "clicked(int)", "clicked", "text(QString)"])
def test_only_an_exact_signature_connects(signature, slicerHost):
    with pytest.raises(ValueError, match="does not exist"):
        qt.QPushButton().connect(signature, print)


def test_a_receiver_gets_as_many_arguments_as_it_takes(slicerHost):
    button, got = qt.QPushButton(), list[object]()
    button.setCheckable(True)
    button.connect("toggled(bool)", lambda: got.append("none"))
    button.connect("toggled(bool)", lambda on: got.append(on))
    button.connect("clicked()", lambda *arguments: got.append(arguments))
    button.click()
    assert got == ["none", True, ()]


def test_a_signal_of_a_base_class_connects(slicerHost):
    label, links = qt.QLabel(), list[str]()
    label.connect("linkActivated(QString)", links.append)
    label.linkActivated("report")
    assert links == ["report"]


def test_what_is_no_function_gets_every_argument(slicerHost):
    button, got = qt.QPushButton(), list[object]()
    button.connect("clicked(bool)", functools.partial(got.append))
    button.clicked.connect(functools.partial(got.append))
    button.clicked.connect(lambda: got.append("none"))
    button.click()
    assert got == [False, False, "none"]


def test_disconnect_undoes_connect(slicerHost):
    button, got = qt.QPushButton(), list[object]()
    for connected, signal in ((button.clicked, ()), (button, ("clicked(bool)",))):
        connected.connect(*signal, got.append)
        assert connected.disconnect(*signal, got.append)
        assert not connected.disconnect(*signal, got.append)
    button.click()
    assert got == []


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda: qt.QPainter().setBrush(qt.Qt.NoBrush), "setBrush"),
        (lambda: qt.QPainter().drawText(qt.QPointF(), "text", 0, 0), "drawText"),
        (lambda: qt.QBrush(qt.Qt.red, qt.Qt.SolidPattern), "QBrush"),
        (lambda: qt.QColor(1, 2, 3).getRgb(), "getRgb"),
        (lambda: qt.QImage(bytes(4), 1, 1, qt.QImage.Format_RGB32), "QImage"),
        (lambda: qt.QPixmap(["1 1 1 1", "a c #000000", "a"]), "QPixmap"),
        (lambda: qt.QListWidgetItem(qt.QListWidgetItem("row")), "QListWidgetItem"),
        (lambda: qt.QGridLayout().addWidget(qt.QLabel()), "addWidget"),
        (lambda: qt.QRect().getRect(), "getRect"),
        (lambda: qt.QLabel().topLevelWidget(), "topLevelWidget"),
    ],
)
def test_an_overload_that_pythonqt_has_not_is_refused(call, name, slicerHost):
    with pytest.raises(ValueError, match=f"^Called {name} with wrong arguments: "):
        call()


def test_overloads_that_pythonqt_has_work_beside_those_it_has_not(slicerHost):
    assert qt.QColor("red").name() == "#ff0000"
    assert qt.QListWidgetItem("row").text() == "row"
    layout = qt.QGridLayout()
    layout.addWidget(qt.QLabel(), 0, 1)
    assert layout.columnCount() == 2
    pixmap = qt.QPixmap(4, 4)
    painter = qt.QPainter()
    assert painter.begin(pixmap)
    painter.setBrush(qt.QBrush())
    painter.setBrush(qt.QColor(1, 2, 3))
    painter.drawText(1, 1, 2, 2, qt.Qt.AlignRight, "a")
    painter.end()


def test_the_table_of_missing_overloads_names_functions_of_qt(slicerHost):
    assert all(callable(getattr(kind, "__init__" if name == "new" else name)) for kind, name, _types in removed())


@pytest.mark.parametrize("name", ["Signal", "Slot", "Property", "PySide6"])
def test_qt_has_nothing_of_pyside(name, slicerHost):
    assert not hasattr(qt, name)


def test_a_dialog_that_would_wait_raises(slicerHost):
    with pytest.raises(RuntimeError, match="waits for the user"):
        qt.QFileDialog.getOpenFileName(None, "Choose")
    with pytest.raises(RuntimeError, match="waits for the user"):
        qt.QMessageBox().exec_()


def test_exceptions_in_slots_and_observers_reach_the_excepthook(slicerHost, monkeypatch):
    heard = []
    monkeypatch.setattr(sys, "excepthook", lambda kind, error, trace: heard.append(str(error)))

    def fail(*arguments):
        raise ValueError(f"told {len(heard)}")

    button, subject = qt.QPushButton(), vtk.vtkObject()
    button.connect("clicked(bool)", fail)
    button.clicked.connect(fail)
    button.click()
    subject.AddObserver("ModifiedEvent", fail)
    subject.Modified()
    assert heard == ["told 0", "told 1", "told 2"]


def test_other_threads_wait_while_the_event_loop_waits_and_go_on_while_python_sleeps(slicerHost):
    steps, isOver = [], threading.Event()

    def count():
        while not isOver.wait(0.001):
            steps.append(1)

    thread = threading.Thread(target=count)
    timer = qt.QTimer()
    timer.setInterval(100)
    timer.start()
    thread.start()
    before = len(steps)
    EventLoop.wait(0.1)
    EventLoop.turn()
    held = len(steps) - before
    time.sleep(0.1)
    isOver.set()
    thread.join()
    assert held <= 3
    assert len(steps) - before - held > 20


def test_the_launcher_passes_exit_codes_on_and_says_when_its_python_was_killed(slicerHost):
    launcher = shutil.which("PythonSlicer")

    def ends(program):
        found = subprocess.run([launcher, "-S", "-c", program], capture_output=True, text=True, check=False)
        return found.returncode, found.stderr

    assert ends("raise SystemExit(3)")[0] == 3
    code, said = ends("import os; os.kill(os.getpid(), 9)")
    assert code == 1
    assert said.endswith("exit abnormally - Report the problem.\n")


# ------------------------------------------------------------------ forms and widgets


def test_a_selector_gets_the_scene_only_through_its_connection(loadUi, volume):
    without, connected = (slicer.util.childWidgetVariables(loadUi(SELECTOR, c)) for c in ("", SCENE_TO_SELECTOR))
    for form in (without, connected):
        form.Form.setMRMLScene(slicer.mrmlScene)
    assert without.selector.currentNode() is None
    assert connected.selector.currentNode() is volume


@pytest.mark.parametrize(
    ("widgets", "connections", "complaint"),
    [
        (item("ctkFancyButton", "fancy"), "", "ctkFancyButton"),
        (item("QLabel", "hint", '<property name="txet"><string>a</string></property>'), "", "txet"),
        (item("QLabel", "hint"), SCENE_TO_SELECTOR, "selector"),
        (SELECTOR, SCENE_TO_SELECTOR.replace("setMRMLScene", "setScene"), "setScene"),
        (SELECTOR, SCENE_TO_SELECTOR.replace("mrmlSceneChanged", "sceneChanged"), "sceneChanged"),
    ],
)
def test_a_form_with_something_unknown_is_refused(widgets, connections, complaint, loadUi):
    with pytest.raises((RuntimeError, ValueError), match=complaint):
        loadUi(widgets, connections)


def test_a_node_selector_follows_the_scene(volume, scene):
    selector = slicer.qMRMLNodeComboBox()
    selector.nodeTypes = ["vtkMRMLScalarVolumeNode"]
    selector.noneEnabled = True
    heard: list[object] = []
    selector.connect("currentNodeChanged(vtkMRMLNode*)", heard.append)
    selector.connect("currentNodeChanged(bool)", heard.append)
    selector.setMRMLScene(scene)
    assert selector.nodeCount() == 1
    assert selector.currentNode() is None
    selector.setCurrentNode(volume)
    scene.Clear(0)
    assert heard == [volume, True, None, False]
    with pytest.raises(AttributeError):
        selector.currentNodeChanged.connect(heard.append)


@pytest.mark.parametrize(("isNone", "left"), [(True, "ABC"), (False, "ABC"), (True, "BCD"), (False, "BCD")])
def test_a_node_selector_goes_to_the_neighbour_of_a_removed_node(isNone, left, scene):
    selector = slicer.qMRMLNodeComboBox()
    selector.nodeTypes, selector.noneEnabled = ["vtkMRMLScalarVolumeNode"], isNone
    nodes = {name: scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", name) for name in "ABCD"}
    selector.setMRMLScene(scene)
    (gone,) = set("ABCD") - set(left)
    selector.setCurrentNode(nodes[gone])
    scene.RemoveNode(nodes[gone])
    expected = {("D", True): "C", ("D", False): "C", ("A", True): None, ("A", False): "B"}[gone, isNone]
    assert selector.currentNode() is (nodes[expected] if expected else None)


def test_a_node_selector_tells_of_a_renamed_node_again(volume, scene):
    selector, heard = slicer.qMRMLNodeComboBox(), []
    selector.nodeTypes = ["vtkMRMLScalarVolumeNode"]
    selector.setMRMLScene(scene)
    selector.connect("currentNodeChanged(vtkMRMLNode*)", heard.append)
    volume.SetName("renamed")
    volume.Modified()
    assert heard == [volume]


def test_a_segment_selector_offers_the_segments_of_its_node(segmentation, scene):
    selector, chosen = slicer.qMRMLSegmentSelectorWidget(), list[str]()
    selector.connect("currentSegmentChanged(QString)", chosen.append)
    selector.setMRMLScene(scene)
    selector.setCurrentNode(segmentation)
    selector.setCurrentSegmentID("spleen")
    segmentation.GetSegmentation().RemoveSegment("spleen")
    assert chosen == ["liver", "spleen", "liver"]
    assert selector.currentSegmentID() == "liver"


def test_a_segments_table_keeps_its_selection_when_segments_change(segmentation):
    table, heard = slicer.qMRMLSegmentsTableView(), []
    table.connect("selectionChanged(QItemSelection,QItemSelection)", lambda: heard.append(table.selectedSegmentIDs()))
    table.setSegmentationNode(segmentation)
    table.setSelectedSegmentIDs(["spleen"])
    segmentation.GetSegmentation().AddEmptySegment("kidney", "Kidney")
    assert table.segmentCount == 3
    assert table.selectedSegmentIDs() == ("spleen",)
    assert heard == [("spleen",)]


def test_a_segments_table_shows_the_colour_of_the_selected_row(segmentation):
    table = slicer.qMRMLSegmentsTableView()
    table.resize(300, 120)
    table.setSegmentationNode(segmentation)
    table.setSelectedSegmentIDs(["liver"])
    picture = table.grab().toImage()
    seen = {qt.QColor(picture.pixel(x, y)).name() for x in range(0, 120) for y in range(20, 60)}
    assert qt.QColor.fromRgbF(0.9, 0.1, 0.1).name() in seen


def test_a_collapsible_button_shows_again_only_what_was_shown(slicerHost):
    section = ctk.ctkCollapsibleButton("Adapt")
    layout = qt.QVBoxLayout(section)
    shown, hidden = qt.QLabel(), qt.QLabel()
    for label in (shown, hidden):
        layout.addWidget(label)
    hidden.hide()
    section.show()
    section.collapsed = True
    assert shown.isHidden()
    section.checked = True
    assert (shown.isHidden(), hidden.isHidden(), section.collapsed) == (False, True, False)


def test_a_setter_that_ctk_does_not_declare_as_a_slot_is_missing(slicerHost):
    slider, values = ctk.ctkSliderWidget(), list[float]()
    slider.connect("valueChanged(double)", values.append)
    slider.minimum, slider.maximum = -10, 10
    slider.setValue(4)
    slider.value = 200
    assert values == [4, 10]
    with pytest.raises(AttributeError):
        slider.setMinimum(3)


# ------------------------------------------------------------------ modules


MODULE = """
from slicer.ScriptedLoadableModule import *
from slicer.i18n import tr as _

log = []

class Toy(ScriptedLoadableModule):
    def __init__(self, parent):
        ScriptedLoadableModule.__init__(self, parent)
        parent.title = _("Toy")

class ToyWidget(ScriptedLoadableModuleWidget):
    def setup(self):
        ScriptedLoadableModuleWidget.setup(self)
        import qt
        self.logic = object()
        self.layout.addWidget(qt.QLabel(self.resourcePath("UI/Toy.ui")))
        log.append("setup")
    def enter(self): log.append("enter")
    def exit(self): log.append("exit")
    def cleanup(self): log.append("cleanup")
"""


@pytest.fixture
def toy(tmp_path, slicerHost):
    path = tmp_path / "Toy.py"
    path.write_text(textwrap.dedent(MODULE))
    slicerHost.moduleManager().loadModule(path)
    yield path
    slicer.util.selectModule("")
    slicer.modules.toy.discardWidget()
    del slicer.modules.toy, slicer.modules.ToyInstance, sys.modules["Toy"]


def test_a_module_is_set_up_once_and_entered_each_time(toy):
    log = sys.modules["Toy"].log
    assert log == []
    slicer.util.selectModule("Toy")
    slicer.util.selectModule("")
    slicer.util.selectModule("Toy")
    assert log == ["setup", "enter", "exit", "enter"]
    widget = slicer.util.getModuleWidget("Toy")
    assert slicer.util.getModuleLogic("Toy") is widget.logic
    assert widget.resourcePath("UI/Toy.ui") == str(toy.parent / "Resources/UI/Toy.ui")
    assert slicer.util.selectedModule() == "Toy"


def test_reloading_a_module_cleans_up_and_sets_up_from_the_new_source(toy):
    slicer.util.selectModule("Toy")
    before, old = sys.modules["Toy"], slicer.util.getModuleWidget("Toy")
    toy.write_text(toy.read_text() + "version = 2\n")
    slicer.util.reloadScriptedModule("Toy")
    assert before.log == ["setup", "enter", "cleanup"]
    assert sys.modules["Toy"].log == ["setup"], "Slicer does not enter a module that it takes anew"
    assert sys.modules["Toy"].version == 2
    assert slicer.util.getModuleWidget("Toy") is not old
    assert slicer.modules.ToyWidget is slicer.util.getModuleWidget("Toy")


def test_a_module_sets_only_what_slicers_module_has(toy):
    with pytest.raises(AttributeError):
        slicer.modules.toy.caption = "Toy"


def test_questions_are_answered_and_what_was_said_is_kept(messages):
    messages.answer = False
    assert not slicer.util.confirmYesNoDisplay("Discard the adapter?")
    slicer.util.errorDisplay("Not enough memory.")
    with pytest.raises(ValueError, match="too small"), slicer.util.tryWithErrorDisplay("Failed to adapt."):
        raise ValueError("too small")
    assert messages.texts("confirm") == ["Discard the adapter?"]
    assert messages.texts("error") == ["Not enough memory.", "Failed to adapt.\n\ntoo small"]


def test_a_screenshot_shows_panel_and_views(volume, toy, screenshot, tmp_path):
    slicer.util.selectModule("Toy")
    screenshot(tmp_path / "window.png")
    picture = qt.QImage(str(tmp_path / "window.png"))
    assert (picture.width(), picture.height()) == (1280, 800)
    colors = {qt.QColor(picture.pixel(x, y)).name() for x in range(0, 1280, 20) for y in range(0, 800, 4)}
    assert {"#f34a4a", "#edd54c", "#6eb04b"} <= colors

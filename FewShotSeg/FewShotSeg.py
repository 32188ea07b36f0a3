"""FewShotSeg: the four classes that 3D Slicer asks of a scripted module. What they do is in FewShotSegSlicer."""

from __future__ import annotations

import sys
from typing import Any

import slicer
from slicer.i18n import tr as _
from slicer.i18n import translate
from slicer.ScriptedLoadableModule import (
    ScriptedLoadableModule,
    ScriptedLoadableModuleLogic,
    ScriptedLoadableModuleTest,
    ScriptedLoadableModuleWidget,
)
from slicer.util import VTKObservationMixin

from FewShotSegSlicer.Logic import Logic
from FewShotSegSlicer.Scene import SamplePatients


class FewShotSeg(ScriptedLoadableModule):
    """What Slicer shows of the module, and its sample data."""

    def __init__(self, parent: Any) -> None:
        super().__init__(parent)
        parent.title = "FewShotSeg"
        parent.categories = [translate("qSlicerAbstractCoreModule", "Segmentation")]
        parent.dependencies = []
        parent.contributors = ["The FewShotSeg contributors"]
        parent.helpText = _(
            "Click a structure and see its mask; keep a few annotated slices, press Adapt, and segment the rest of the "
            "volume and whole folders with the adapted model. Everything runs on this computer. Not for clinical use. "
            'See the <a href="https://github.com/FewShotSeg/SlicerFewShotSeg#readme">documentation and tutorial</a>.'
        )
        parent.acknowledgementText = _(
            "Built on Segment Anything (Kirillov et al. 2023) and on the methods of Feng et al. (Cheap Lunch), Yang et "
            "al. (ASAP), Zhu et al. (unsupervised adaptation) and Xu et al. (GMISeg), which are cited in full in the "
            "documentation."
        )
        slicer.app.connect("startupCompleted()", SamplePatients.register)


class FewShotSegWidget(ScriptedLoadableModuleWidget, VTKObservationMixin):
    """Hands on what Slicer calls to the panel. `logic` is what `slicer.util.getModuleLogic("FewShotSeg")` returns."""

    def __init__(self, parent: Any = None) -> None:
        ScriptedLoadableModuleWidget.__init__(self, parent)
        VTKObservationMixin.__init__(self)

    def setup(self) -> None:
        from FewShotSegSlicer.Panel.Panel import Panel

        super().setup()
        self.logic = FewShotSegLogic()
        self.panel = Panel(self)
        self.panel.setup()
        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.StartCloseEvent, self.onSceneStartClose)
        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.EndCloseEvent, self.onSceneEndClose)
        if self.parent.isEntered:  # taken anew while it is shown: Slicer does not enter it again
            self.enter()

    def enter(self) -> None:
        self.panel.enter()

    def exit(self) -> None:
        self.panel.exit()

    def cleanup(self) -> None:
        self.removeObservers()
        self.panel.cleanup()
        self.logic.close()

    def onSceneStartClose(self, caller: Any, event: Any) -> None:
        self.panel.onSceneStartClose()

    def onSceneEndClose(self, caller: Any, event: Any) -> None:
        self.panel.onSceneEndClose()

    def onReload(self) -> None:
        """Take FewShotSegSlicer and FewShotSegLib anew as well; Slicer itself reloads only this file."""
        for name in [name for name in sys.modules if name.split(".")[0] in ("FewShotSegSlicer", "FewShotSegLib")]:
            del sys.modules[name]
        super().onReload()


class FewShotSegLogic(Logic, ScriptedLoadableModuleLogic):
    """The console's way in: `slicer.util.getModuleLogic("FewShotSeg")`."""

    def __init__(self) -> None:
        ScriptedLoadableModuleLogic.__init__(self)
        Logic.__init__(self)


class FewShotSegTest(ScriptedLoadableModuleTest):
    """Slicer's Test button and ctest run this."""

    def setUp(self) -> None:
        slicer.mrmlScene.Clear()

    def runTest(self) -> None:
        self.setUp()
        self.test_FewShotSeg()

    def test_FewShotSeg(self) -> None:
        from FewShotSegSlicer import SelfTest

        SelfTest.run()

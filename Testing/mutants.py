"""Whether the tests notice when the essentials of the methods are cut out: `make mutants`.

Each mutant is one edit of one line that takes away what a paper is about, and a test that must fail for it. A mutant
that lives says that the test looks at something else. The edits are made in a copy; the tree stays as it is. Run before
a release; it takes some minutes, in one process after the other.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
COPIED = ("FewShotSegLib", "Testing", "pyproject.toml")
MISSED, CAUGHT, STALE = "LIVES", "caught", "stale: the line is not there"


@dataclass(frozen=True)
class Mutant:
    """What is taken away, where, by which edit, and the test (file::name) that must fail then."""

    what: str
    file: str
    before: str
    after: str
    test: str


ASAP, UDA, TRAINING = "methods/asap/", "methods/uda/", "training/"
MUTANTS = (
    # ASAP
    Mutant(
        "the auxiliary loss counts nothing",
        ASAP + "turns.py",
        "return arm, self.auxiliary(arm, rng) / (len(arms) if together else 1)",
        "return arm, self.auxiliary(arm, rng) * 0",
        ASAP + "test_turns.py::test_multi_task_learning_follows_the_target_and_the_mean_of_all_arms_in_every_step",
    ),
    Mutant(
        "patches of the chosen arm count nothing",
        ASAP + "networks.py",
        "return _loss_of(network, patches, self.device)",
        "return _loss_of(network, patches, self.device) * 0",
        ASAP + "test_method.py::test_what_the_arms_show_is_learned",
    ),
    Mutant(
        "every arm is the first one",
        ASAP + "turns.py",
        "arm = part - 1 if together else arms[0]",
        "arm = 0",
        ASAP + "test_turns.py::test_multi_task_learning_follows_the_target_and_the_mean_of_all_arms_in_every_step",
    ),
    Mutant(
        "multi-task learning trains with one arm a step",
        ASAP + "schedulers.py",
        "    all_at_once = True",
        "    all_at_once = False",
        ASAP + "test_turns.py::test_multi_task_learning_follows_the_target_and_the_mean_of_all_arms_in_every_step",
    ),
    Mutant(
        "the mean of the target's gradients does not run",
        ASAP + "gradients.py",
        "torch.lerp(new, mean, self._decay)",
        "new",
        ASAP + "test_gradients.py::test_the_auxiliary_gradient_is_compared_with_the_running_mean_of_the_targets",
    ),
    Mutant(
        "the auxiliary gradient is not told from the sum",
        ASAP + "gradients.py",
        "_products((m, total - t) for m, t, total in parts)",
        "_products((m, total) for m, t, total in parts)",
        ASAP + "test_gradients.py::test_a_joint_step_goes_along_both_gradients_and_tells_their_cosine",
    ),
    Mutant(
        "the steps of a turn run into one another",
        ASAP + "gradients.py",
        'if phase == "target" and self._phase != "target":',
        "if False:",
        ASAP + "test_gradients.py::test_steps_are_pooled_until_they_are_taken",
    ),
    Mutant(
        "the paper's bandit keeps to the arm that the network starts from",
        ASAP + "method.py",
        'keep_to_best=recipe.reading == "default",',
        "keep_to_best=True,",
        ASAP + "test_method.py::test_in_the_readings_of_the_paper_other_arms_compete_with_the_best_one",
    ),
    Mutant(
        "means of several batches are of one batch",
        ASAP + "turns.py",
        "self._look(turn, arm, self.recipe.reward_batches)",
        "self._look(turn, arm, 1)",
        ASAP + "test_turns.py::test_to_the_letter_a_turn_measures_means_of_several_batches_before_its_first_step",
    ),
    Mutant(
        "the first look comes at once",
        ASAP + "turns.py",
        "if step < self.recipe.lots_until:",
        "if step < 0:",
        ASAP + "test_turns.py::test_before_the_first_look_arms_are_drawn_by_lot_and_after_it_the_scheduler_chooses",
    ),
    Mutant(
        "pretraining follows the target too",
        ASAP + "turns.py",
        "if not self.recipe.follow_target:",
        "if False:",
        ASAP + "test_turns.py::test_a_target_that_is_not_followed_moves_nothing_and_still_decides",
    ),
    Mutant(
        "a high loss is a reward",
        ASAP + "bandit.py",
        "return -alpha * arm.loss + (1 - alpha) * arm.cosine",
        "return alpha * arm.loss + (1 - alpha) * arm.cosine",
        ASAP + "test_bandit.py::test_loss_and_cosine_averaged_apart_are_mixed_by_the_turn_that_decides",
    ),
    Mutant(
        "the bonus forgets how often an arm was played",
        ASAP + "bandit.py",
        "return self.recipe.exploration * math.sqrt(2 * math.log(clock) / n)",
        "return self.recipe.exploration * math.sqrt(2 * math.log(clock))",
        ASAP + "test_bandit.py::test_the_bonus_is_that_of_the_published_run",
    ),
    Mutant(
        "averages of eq. 4 keep the first value",
        ASAP + "bandit.py",
        "return (1 - weight) * before + weight * new",
        "return before",
        ASAP + "test_bandit.py::test_eq_4_has_its_closed_form",
    ),
    Mutant(
        "EXP3 forgets by which chance an arm was drawn",
        ASAP + "bandit.py",
        "+ cosine / (arm.score or 1.0)",
        "+ cosine",
        ASAP + "test_bandit.py::test_exp3_sums_rewards_over_the_probability_they_were_drawn_with",
    ),
    Mutant(
        "the start is trained on whatever arm is first",
        ASAP + "networks.py",
        "alone.keep_to(best)",
        "alone.keep_to(0)",
        ASAP + "test_method.py::test_asap_starts_from_fresh_weights_trained_on_the_best_arm_alone",
    ),
    Mutant(
        "arms that oppose the target are pulled",
        ASAP + "bandit.py",
        "return not self.recipe.abstain or arm.cosine is None or",
        "return True or",
        ASAP + "test_bandit.py::test_an_arm_that_opposes_the_target_is_left_out_and_without_others_none_is_pulled",
    ),
    Mutant(
        "arms show the exemplars' own scans",
        ASAP + "pool.py",
        "if prepared.digest in self.of_target:",
        "if False:",
        ASAP + "test_pool.py::test_the_exemplars_own_scans_are_never_drawn",
    ),
    Mutant(
        "auxiliary patches are not changed",
        ASAP + "pool.py",
        "self.grid.patch, change, device)",
        "self.grid.patch, None, device)",
        ASAP + "test_pool.py::test_the_mask_of_a_changed_patch_is_the_structure_moved_along",
    ),
    Mutant(
        "GMS compares directions",
        ASAP + "schedulers.py",
        'similarity: Literal["cosine", "magnitude"] = "magnitude"',
        'similarity: Literal["cosine", "magnitude"] = "cosine"',
        ASAP + "test_schedulers.py::test_gms_chooses_once_by_the_size_of_the_gradients",
    ),
    # UDA
    Mutant(
        "borrowed labels are dropped",
        UDA + "stages.py",
        "matched = own | self._borrowed(first) if recipe.match else own",
        "matched = own",
        UDA + "test_stages.py::test_matching_comes_before_self_training_which_goes_on_from_the_updated_labels",
    ),
    Mutant(
        "the small network learns from sources alone",
        UDA + "stages.py",
        'self._taught(labels), "small network"',
        '[], "small network"',
        UDA + "test_stages.py::test_each_part_alone_teaches_the_small_network_what_it_says",
    ),
    Mutant(
        "teachers do not train themselves",
        UDA + "stages.py",
        "weights = self._teacher(cases, self._taught(current), number)",
        "weights = self._teacher(cases, [], number)",
        UDA + "test_stages.py::test_matching_comes_before_self_training_which_goes_on_from_the_updated_labels",
    ),
    Mutant(
        "the translation is thrown away",
        UDA + "stages.py",
        "kept.append(replace(case, image=image))",
        "kept.append(case)",
        UDA + "test_stages.py::test_networks_learn_from_the_translated_images",
    ),
    Mutant(
        "a structure that was not found raises no doubt",
        UDA + "networks.py",
        "return 1.0\n    odds",
        "return 0.0\n    odds",
        UDA
        + "test_networks.py::"
        + "test_a_structure_that_is_not_found_is_doubted_entirely_and_none_outvotes_the_others",
    ),
    Mutant(
        "networks with inherited weights are trained in full",
        UDA + "stages.py",
        "round(self.recipe.inherited_fraction * training.steps)",
        "training.steps",
        UDA + "test_stages.py::test_a_network_with_inherited_weights_is_trained_for_a_fraction_of_the_steps",
    ),
    Mutant(
        "a borrower is judged by what it borrowed",
        UDA + "stages.py",
        "first = own if rounds > 1 else matched",
        "first = matched",
        UDA + "test_stages.py::test_of_two_rounds_the_first_is_from_before_matching",
    ),
    Mutant(
        "labels from before matching are compared with later ones",
        UDA + "stages.py",
        "counted = [] if self.recipe.match and rounds > 2 else [first]",
        "counted = [first]",
        UDA + "test_stages.py::test_matching_comes_before_self_training_which_goes_on_from_the_updated_labels",
    ),
    Mutant(
        "the filter keeps every target",
        UDA + "pseudo_labels.py",
        "if not reason and rank <= count:",
        "if False:",
        UDA + "test_stages.py::test_the_filter_keeps_the_most_uncertain_target_from_the_small_network",
    ),
    Mutant(
        "eq. 7 measures by what changed",
        UDA + "pseudo_labels.py",
        "return changed / found",
        "return float(changed > 0)",
        UDA + "test_pseudo_labels.py::test_a_growing_structure_is_as_uncertain_as_equation_7_says",
    ),
    Mutant(
        "the union is the majority",
        UDA + "pseudo_labels.py",
        'for value in [0, *candidates] if vote == "majority" else candidates:',
        "for value in [0, *candidates]:",
        UDA + "test_pseudo_labels.py::test_every_triple_of_labels_has_one_answer",
    ),
    Mutant(
        "edges have a generator of their own",
        UDA + "stages.py",
        "skip=recipe.residual,",
        "skip=self.anatomy is not None,",
        UDA + "test_stages.py::test_edges_and_intensities_are_translated_by_one_kind_of_generator",
    ),
    Mutant(
        "edges are shaded",
        UDA + "stages.py",
        "recipe.patches if self.anatomy is None else recipe.patches.unshaded()",
        "recipe.patches",
        UDA + "test_stages.py::test_edges_are_not_shaded",
    ),
    Mutant(
        "teachers have the small network's size",
        UDA + "stages.py",
        "self.teaching = replace(self.training, size=cast(Any, recipe.teacher_size))",
        "self.teaching = self.training",
        UDA + "test_stages.py::test_teachers_are_larger_than_the_network_that_is_kept_where_the_recipe_says_so",
    ),
    Mutant(
        "the cycle loss is left out",
        UDA + "cycle_gan.py",
        "weighted = recipe.cycle_weight * self.cycle + recipe.identity_weight * self.identity",
        "weighted = recipe.identity_weight * self.identity",
        UDA + "test_cycle_gan.py::test_the_terms_add_up_to_eq_4",
    ),
    Mutant(
        "labels travel the wrong way",
        UDA + "registration.py",
        "fixed_from_moving = np.linalg.inv(moving_from_fixed)",
        "fixed_from_moving = moving_from_fixed",
        UDA + "test_registration.py::test_labels_travel_as_simpleitk_resamples_them",
    ),
    Mutant(
        "edges are computed before the grid",
        "inference/volume_network.py",
        'late = anatomy is not None and edges == "grid"',
        "late = False",
        "inference/test_volume_network.py::test_edges_on_the_grid_are_those_of_the_resampled_image_and_free_of_haze",
    ),
    Mutant(
        "of the CT's organs those alone are learned that the MR has labels of",
        "benchmarks/uda.py",
        'if self.organs == "all" or name in',
        "if name in",
        "benchmarks/test_uda.py::test_all_organs_of_the_ct_are_learned_or_those_of_the_mr_and_what_both_have_is_scored",
    ),
    Mutant(
        "an organ outside the scan counts as missed",
        "benchmarks/uda.py",
        "if truth.any() else None",
        "if True else None",
        "benchmarks/test_uda.py::test_every_target_is_scored_by_its_own_labels_and_only_for_what_it_shows",
    ),
    # Cheap Lunch
    Mutant(
        "without synthesis samples are transformed",
        "synthesis/synthesizer.py",
        'return Plan("original", index, None, "exemplar", self._sources(index, "exemplar", None))',
        "return super().sample(rng)",
        TRAINING + "test_prompted.py::test_without_synthesis_the_exemplar_slices_are_shown_as_they_are",
    ),
    Mutant(
        "synthesis=False does nothing",
        TRAINING + "prompted.py",
        "if not recipe.synthesis:",
        "if False:",
        TRAINING + "test_prompted.py::test_without_synthesis_the_exemplar_slices_are_shown_as_they_are",
    ),
    Mutant(
        "the recipe's weight of Dice is ignored",
        TRAINING + "lesson.py",
        "return LossWeights(recipe.cross_entropy_weight, recipe.dice_weight,",
        "return LossWeights(recipe.cross_entropy_weight, 0.1,",
        TRAINING + "test_lesson.py::test_the_recipe_s_weights_prompts_and_points_are_those_of_the_lesson",
    ),
    Mutant(
        "Dice is left out",
        TRAINING + "queries.py",
        "per_mask = per_mask + weights.dice * soft_dice_loss(probability, target * known, squared=True)",
        "per_mask = per_mask + 0",
        TRAINING + "test_queries.py::test_each_part_of_the_loss_has_its_own_weight",
    ),
    Mutant(
        "Dice with background is without it",
        TRAINING + "queries.py",
        "pairs = ((probability, target), (1 - probability, 1 - target))",
        "pairs = ((probability, target),)",
        TRAINING + "test_queries.py::test_dice_with_background_is_that_of_two_classes_over_the_whole_batch",
    ),
    Mutant(
        "prompts are nearly all boxes",
        TRAINING + "queries.py",
        "return 1 - self.box_share, 2 * self.box_share / 3, self.box_share / 3",
        "return 0.05, 0.9, 0.05",
        TRAINING + "test_queries.py::test_clicks_boxes_and_both_come_in_their_shares",
    ),
    Mutant(
        "training clicks are always the deepest",
        "sam/clicks.py",
        "if central and rng.random() < central:\n        depth",
        "if True:\n        depth",
        TRAINING + "test_queries.py::test_points_alone_anywhere_in_the_structure_as_in_the_paper",
    ),
    Mutant(
        "there are no corrective clicks",
        TRAINING + "lesson.py",
        "correction = rng if rng.random() < recipe.correction_probability else None",
        "correction = None",
        TRAINING + "test_lesson.py::test_corrective_clicks_come_as_often_as_the_recipe_says",
    ),
    Mutant(
        "the locator learns nothing",
        TRAINING + "lesson.py",
        "loss = loss + locator_loss(self.adaptation, embedding, batch.samples)",
        "pass",
        TRAINING + "test_lesson.py::test_the_locator_learns_with_the_tokens",
    ),
    Mutant(
        "the learning rate is ten times the paper's",
        TRAINING + "prompted_recipe.py",
        "learning_rate: float = option(1e-3,",
        "learning_rate: float = option(1e-2,",
        "methods/test_lora.py::test_the_numbers_of_the_paper_are_the_defaults",
    ),
    Mutant(
        "noise is left out",
        "synthesis/synthesizer.py",
        "image += np.float32(plan.noise_sd) * rng",
        "image += np.float32(0) * rng",
        "synthesis/test_synthesizer.py::test_noise_has_the_drawn_standard_deviation",
    ),
    # Ours: maps, ends and pasting
    Mutant(
        "the level is where most of a structure is found",
        "inference/slice_range.py",
        "(weights * likeness**2).argmax(1)",
        "weights.argmax(1)",
        "inference/test_slice_range.py::test_the_level_is_where_all_is_found_that_slices_show_together",
    ),
    Mutant(
        "a vessel ends where it is poorly found",
        "inference/slice_range.py",
        "if iou(inner, outer) < SAME:",
        "if True:",
        "inference/test_segment.py::test_a_vessel_that_is_poorly_found_on_some_slices_is_not_cut_there",
    ),
    Mutant(
        "nothing is cut beyond the ends",
        "inference/segment.py",
        "beyond[beyond == value] = 0",
        "pass",
        "inference/test_segment.py::test_what_is_found_beyond_the_ends_is_removed_unless_told_otherwise",
    ),
    Mutant(
        "a click is answered by what was learned alone",
        "inference/structure_maps.py",
        "return (1 - share) * plain + share * (sum(learned) / len(learned))",
        "return sum(learned) / len(learned)",
        TRAINING + "test_mapped.py::test_half_of_an_answer_to_a_click_is_the_base_models",
    ),
    Mutant(
        "learned masks that contradict each other have half of an answer",
        "inference/structure_maps.py",
        "shares = np.where(doubtful, LEARNED_IF_DISAGREEING, LEARNED)",
        "shares = LEARNED",
        TRAINING
        + "test_mapped.py::test_half_of_an_answer_is_learned_a_third_of_a_click_in_doubt_and_an_eighth_in_a_box",
    ),
    Mutant(
        "a click that was taken out or in is answered as before",
        "inference/predictor.py",
        "& (old.labels[:, :both] == new.labels[:, :both])",
        "",
        "inference/test_predictor.py::test_one_more_point_or_one_less_repeats_no_step",
    ),
    Mutant(
        "a click is answered by the steps of another slice",
        "inference/predictor.py",
        "(self.features is not other.features) or ",
        "",
        "inference/test_predictor.py::test_one_more_point_or_one_less_repeats_no_step",
    ),
    Mutant(
        "what was learned misleads the base model's next step",
        "inference/structure_maps.py",
        "plain = super().answer(embedding, prompt, frame)",
        "return super().answer(embedding, prompt, frame, structures)",
        TRAINING + "test_mapped.py::test_only_the_base_model_corrects_its_mask_point_by_point",
    ),
    Mutant(
        "what touches is pasted apart",
        "synthesis/synthesizer.py",
        "if self.recipe.move_together:",
        "if False:",
        "synthesis/test_pasting.py::test_a_wall_keeps_its_cavity_when_they_move_together",
    ),
    # What the Cheap Lunch paper compares with
    Mutant(
        "the paper's row is trained as ours",
        "benchmarks/accuracy.py",
        "if model in (PAPER, PAPER_PLAIN):",
        "if False:",
        "benchmarks/test_accuracy.py::test_each_row_is_trained_by_the_recipe_it_is_named_after",
    ),
    Mutant(
        "the tumour's slices are scaled as in our rows",
        "benchmarks/accuracy.py",
        "return MINMAX if dataset.merged and",
        "return MINMAX if False and",
        "benchmarks/test_accuracy.py::test_each_row_is_trained_by_the_recipe_it_is_named_after",
    ),
    Mutant(
        "Dice of K + 1 classes is without the background",
        "benchmarks/samed.py",
        "soft_dice_loss(found, there, squared=True",
        "soft_dice_loss(found[1:], there[1:], squared=True",
        "benchmarks/test_samed.py::test_the_loss_is_a_fifth_cross_entropy_and_four_fifths_dice_with_the_background",
    ),
    Mutant(
        "the encoder of K + 1 classes stays as it is",
        "benchmarks/samed.py",
        "return {**lora_parameters(self.network), **whole}",
        "return whole",
        "benchmarks/test_samed.py::test_what_learns_is_lora_in_the_encoder_and_all_of_the_prompt_encoder_and_the_decoder",
    ),
    # GMISeg
    Mutant(
        "sets drawn by lot are the same one each time",
        "benchmarks/support.py",
        "np.random.default_rng([seed, size])",
        "np.random.default_rng([0, size])",
        "benchmarks/test_support.py::test_sets_drawn_by_lot_are_drawn_as_boxes_beside_the_curves",
    ),
    Mutant(
        "the loss is not focal",
        "methods/gmiseg.py",
        "functools.partial(focal_loss, gamma=recipe.focal_gamma)",
        "functools.partial(focal_loss, gamma=0.0)",
        "methods/test_gmiseg.py::test_the_loss_is_focal_as_the_recipe_says",
    ),
    Mutant(
        "a click has one point",
        TRAINING + "queries.py",
        'if pointing.most_points > 1 and kind != "box":',
        "if False:",
        TRAINING + "test_queries.py::test_prompts_have_one_point_or_several_as_the_recipe_says",
    ),
    Mutant(
        "an ensemble answers with its last subset",
        "inference/support.py",
        "logits = torch.stack(resized).mean(0)",
        "logits = resized[-1]",
        "inference/test_support.py::test_an_ensemble_is_the_mean_of_its_members_masks_and_not_a_mask_of_the_mean_map",
    ),
    Mutant(
        "an ensemble decodes the mean of its maps",
        "inference/support.py",
        "if len(self.members) == 1:",
        "if True:",
        "inference/test_support.py::test_an_ensemble_is_the_mean_of_its_members_masks_and_not_a_mask_of_the_mean_map",
    ),
)


def main(arguments: Sequence[str]) -> int:
    """Print a table; the exit status is the number of mutants that no test has caught."""
    parser = argparse.ArgumentParser(prog="mutants", description=__doc__)
    parser.add_argument("--only", default="", help="mutants whose description or file holds this text")
    chosen = [m for m in MUTANTS if parser.parse_args(arguments).only in f"{m.what} {m.file}"]
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder)
        for name in COPIED:
            source = ROOT / name
            copy = shutil.copytree if source.is_dir() else shutil.copy2
            copy(source, tree / name)  # type: ignore[operator]
        tests = sorted({mutant.test for mutant in chosen})
        if not _pass(tree, tests):
            sys.stderr.write("A test that is to catch a mutant fails without any; mend it first.\n")
            return 1
        return sum(verdict != CAUGHT for verdict in _verdicts(tree, chosen))


def _verdicts(tree: Path, mutants: Sequence[Mutant]) -> Iterator[str]:
    """One after the other, each said when it is known."""
    for mutant in mutants:
        started = time.monotonic()
        path = tree / "FewShotSegLib" / mutant.file
        whole = path.read_text(encoding="utf-8")
        verdict = STALE
        if whole.count(mutant.before) == 1:
            path.write_text(whole.replace(mutant.before, mutant.after), encoding="utf-8")
            verdict = MISSED if _pass(tree, [mutant.test]) else CAUGHT
            path.write_text(whole, encoding="utf-8")
        seconds = time.monotonic() - started
        sys.stdout.write(f"{verdict:8} {seconds:5.1f} s  {mutant.file}: {mutant.what}\n")
        sys.stdout.flush()
        yield verdict


def _pass(tree: Path, tests: Sequence[str]) -> bool:
    """Whether these tests pass in that tree."""
    names = [f"Testing/Library/{test}" for test in tests]
    environment = {**os.environ, "PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-n", "0", "-p", "no:cacheprovider", *names]
    done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, check=False)
    if done.returncode not in (0, 1):
        raise RuntimeError(f"pytest did not run ({done.returncode}): {done.stdout[-2000:]}{done.stderr[-2000:]}")
    return done.returncode == 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

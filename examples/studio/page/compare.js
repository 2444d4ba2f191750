// What may differ side by side: its title in the form, its name on a card, and the values.

export const SIDE_BY_SIDE = {
  sag_scale: { title: "SAG scale", name: "SAG", values: [0, 0.5, 0.75, 1] },
  sag_blur_sigma: { title: "SAG blur sigma", name: "Blur", values: [0.5, 1, 2, 4] },
  sag_mask_threshold: { title: "SAG mask threshold", name: "Threshold", values: [0.5, 0.8, 1, 1.2] },
  strength: { title: "Strength", name: "Strength", values: [0.3, 0.5, 0.7, 0.9] },
};

/** The field that differs among the tasks that a task was made with. */
export const differing = ({ compare }) =>
  Object.hasOwn(SIDE_BY_SIDE, compare ?? "") ? compare : "sag_scale";

"""Rows of a data set about held-out scenes, pictures in memory."""

from llava_probe import tiny


def scene_rows(scenes, questions):
    """The first questions of the first scenes, each with the mask of the scene's first object."""
    made = []
    for seed in range(scenes):
        scene = tiny.scene(seed)
        for question in scene.questions[:questions]:
            row = {"image": scene.image, "question": question.question, "answer": question.answer}
            made.append({**row, "kind": question.kind, "mask": scene.objects[0].mask})
    return made

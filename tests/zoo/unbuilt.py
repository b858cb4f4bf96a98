"""Names of transformers' image-text-to-text mapping that the zoo has no builder for, each with the reason."""

from __future__ import annotations

UNBUILT: dict[str, str] = {
    "diffusion_gemma": "writes by diffusion, a whole block of words at once: no step predicts the next token",
    "evolla": "not about pictures: it is asked about proteins",
    "florence2": "encoder-decoder: its pictures go into the encoder",
    "instructblipvideo": "takes videos only: what its processor calls images are frames of a video",
    "pi0": "a robot's policy: it answers with movements, not with words",
    "pix2struct": "encoder-decoder: its pictures go into the encoder, the question is drawn onto them",
    "pp_formulanet": "encoder-decoder: its pictures go into the encoder, and it takes no question",
    "t5gemma2": "encoder-decoder: its pictures go into the encoder",
    "udop": "encoder-decoder: its pictures and the words read off them go into the encoder",
    "vision-encoder-decoder": "encoder-decoder: its pictures go into the encoder, and it takes no question",
}

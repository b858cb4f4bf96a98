"""Names of transformers' image-text-to-text mapping that the zoo has no builder for, each with the reason."""

from __future__ import annotations

UNBUILT: dict[str, str] = {
    "diffusion_gemma": "writes by diffusion, a whole block of words at once: no step predicts the next token",
    "evolla": "not about pictures: it is asked about proteins",
    "florence2": "encoder-decoder: its pictures go into the encoder",
    "gemma3n": "not built here: its vision tower is one of timm's, which the tests do without",
    "instructblipvideo": "takes videos only: what its processor calls images are frames of a video",
    "mistral4": "a text model: it takes no pictures alone (Mistral 3 around it does)",
    "pi0": "a robot's policy: it answers with movements, not with words",
    "pix2struct": "encoder-decoder: its pictures go into the encoder, the question is drawn onto them",
    "pp_formulanet": "encoder-decoder: its pictures go into the encoder, and it takes no question",
    "shieldgemma2": "a judge of pictures: its processor writes the prompts, so there is no question to ask",
    "t5gemma2": "encoder-decoder: its pictures go into the encoder",
    "udop": "encoder-decoder: its pictures and the words read off them go into the encoder",
    "vision-encoder-decoder": "encoder-decoder: its pictures go into the encoder, and it takes no question",
}

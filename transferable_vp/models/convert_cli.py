"""`transferable-vp convert`: published checkpoints made into folders that transformers loads."""

from __future__ import annotations

import argparse
from typing import Any


_VICUNA = "folder of Vicuna-7B v0, weights and tokenizer"
_VIT = "eva_vit_g.pth of LAVIS or a folder of BLIP-2, if no other file has the image encoder"


def add_convert_parser(commands: Any) -> None:
    r"""
    Adds the command `convert`.

    Args:
        commands: What `ArgumentParser.add_subparsers` gave.
    """
    parser = commands.add_parser(
        "convert",
        help="make a model folder of a published checkpoint",
        description="Make a folder that AutoModelForImageTextToText and AutoProcessor load (after "
        "`import transferable_vp`) of a checkpoint as its authors published it. All files must be on this machine.",
    )
    models = parser.add_subparsers(dest="model", required=True, metavar="MODEL")
    minigpt4 = models.add_parser("minigpt4", help="MiniGPT-4 with Vicuna-7B v0")
    minigpt4.add_argument("checkpoint", help="prerained_minigpt4_7b.pth")
    minigpt4.add_argument("--vicuna", required=True, help=_VICUNA)
    minigpt4.add_argument(
        "--blip2", required=True, help="folder of Salesforce/blip2-flan-t5-xxl, or blip2_pretrained_flant5xxl.pth"
    )
    vpgtrans = models.add_parser("vpgtrans", help="VPGTrans' VL-Vicuna")
    vpgtrans.add_argument("checkpoint", help="vl-vicuna.pth")
    vpgtrans.add_argument("--vicuna", required=True, help=_VICUNA)
    bliva = models.add_parser("bliva", help="BLIVA with Vicuna-7B v0")
    bliva.add_argument("checkpoint", help="bliva_vicuna7b.pth")
    bliva.add_argument("--vicuna", required=True, help=_VICUNA)
    bliva.add_argument("--qformer_tokenizer", default="google-bert/bert-base-uncased",
                       help="folder or Hub id of BERT's tokenizer (default: %(default)s)")  # fmt: skip
    visualglm = models.add_parser("visualglm", help="VisualGLM-6B")
    visualglm.add_argument("checkpoint", help="folder of THUDM/visualglm-6b")
    for model in (minigpt4, vpgtrans, bliva):
        model.add_argument("--vit", help=_VIT)
    for model in (minigpt4, vpgtrans, bliva, visualglm):
        model.add_argument("--output_dir", required=True, help="folder to write; empty, or not there yet")
    parser.set_defaults(function=convert)


def convert(args: argparse.Namespace) -> int:
    r"""
    Runs the command.

    Args:
        args (`argparse.Namespace`): From the parser of [`add_convert_parser`].

    Returns:
        `int`: 0; what is wrong with a file is raised.
    """
    # Here, as nothing else needs the converters.
    from .lavis import convert_bliva, convert_minigpt4, convert_vpgtrans

    if args.model == "minigpt4":
        convert_minigpt4(args.checkpoint, args.vicuna, args.blip2, args.output_dir, vit=args.vit)
    elif args.model == "vpgtrans":
        convert_vpgtrans(args.checkpoint, args.vicuna, args.output_dir, vit=args.vit)
    elif args.model == "bliva":
        convert_bliva(args.checkpoint, args.vicuna, args.output_dir, args.vit, args.qformer_tokenizer)
    else:
        from .visualglm.convert import convert_visualglm

        convert_visualglm(args.checkpoint, args.output_dir)
    print(f"Wrote {args.output_dir}. Load it with Surrogate.from_pretrained({args.output_dir!r}).")
    return 0

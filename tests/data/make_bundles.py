"""Make the committed bundles: a small LeNet on the digits as fp32 and int8 ONNX. Run it from the repository's root."""

import shutil
from pathlib import Path

import edgekit

HERE = Path(__file__).parent

if __name__ == "__main__":
    work = HERE / "work"
    for old in (work, HERE / "lenet-fp32", HERE / "lenet-int8"):
        shutil.rmtree(old, ignore_errors=True)
    recipe = edgekit.Recipe.load("lenet", ["name=lenet", "data.data=digits", "train.epochs=20", "train.lr=0.05"])
    trained = edgekit.train(recipe, out=work / "trained")
    exported = edgekit.export_bundle(trained, "onnx", HERE / "lenet-fp32")
    # 7-bit weights, so that every machine that runs the tests gets the same answers
    edgekit.quantize(exported, edgekit.QuantizeOptions(target="x86-avx2"), out=HERE / "lenet-int8")
    shutil.rmtree(work)

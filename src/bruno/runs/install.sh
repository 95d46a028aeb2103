# Runs on the machine, as `bash install.sh WHEEL VENV [EXTRAS]`, detached. Makes a virtual environment that sees the image's own torch,
# and installs the engine there. Done again after a failure, it goes on with the same environment.
set -eu
wheel=$1 venv=$2 extras=${3:-}
# Images of the provider keep torch in a virtual environment; others in the system's Python.
base=/venv/main/bin/python
[ -x "$base" ] || base=$(command -v python3)
echo "* Python of the image: $base ($("$base" --version))"
"$base" -m venv --system-site-packages --without-pip "$venv"
# An environment made from another environment's Python sees the system's packages, not that one's: name its folders, as
# folders of their own .pth files.
"$base" - "$venv" << 'PY'
import sys, sysconfig
from pathlib import Path
base = dict.fromkeys([sysconfig.get_path("purelib"), sysconfig.get_path("platlib")])
site = Path(sysconfig.get_path("purelib", vars={"base": sys.argv[1], "platbase": sys.argv[1]}))
site.joinpath("image-packages.pth").write_text("".join(f"import site; site.addsitedir({path!r})\n" for path in base))
PY
"$venv/bin/python" -m pip --version > /dev/null 2>&1 || "$venv/bin/python" -m ensurepip
"$venv/bin/python" -m pip install --no-input --disable-pip-version-check --no-warn-script-location "$wheel$extras"
engine=$("$venv/bin/python" - << 'PY'
import torch, bruno, bruno.engine
where = bruno.__path__[0]
print(f"* Engine {bruno.__version__} in {where}, torch {torch.__version__}, GPUs {torch.cuda.device_count()}")
PY
)
# Kernels for a GPU are worth having and not worth failing for: without them the engine says so and runs.
case $engine in
  *"GPUs 0") ;;
  *)
    "$venv/bin/python" -m pip install --no-input --disable-pip-version-check --no-warn-script-location "$wheel[gpu]" \
      || echo "* The GPU kernels (liger-kernel) could not be installed: the engine will be slower"
    ;;
esac
echo "$engine"

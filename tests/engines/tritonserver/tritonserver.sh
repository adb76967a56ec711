#!/bin/sh
# NVIDIA's Triton server from the wheel of nvidia-pytriton, as bin/tritonserver of the virtual environment that
# `make triton-env` makes. What the server must be told about its place follows from where this script lies, so that a
# copied environment serves too. Options are those of tritonserver.
set -eu
venv=$(cd "$(dirname "$(readlink -f "$0")")/.." && pwd)
site=$(echo "$venv"/lib/python3.*/site-packages)
root=$site/pytriton/tritonserver

# The wheel has one stub for each version of Python, and the server looks for it in the backend's folder.
version=${site%/site-packages}
stub=../../python_backend_stubs/${version##*/python}/triton_python_backend_stub
link=$root/backends/python/triton_python_backend_stub
[ "$(readlink "$link")" = "$stub" ] || ln -sfT "$stub" "$link"

# The stub needs the shared library of the Python that made the environment, and the environment's packages alone.
libpython=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_config_var("LIBDIR"))')
unset PYTHONPATH PYTHONHOME VIRTUAL_ENV
export PATH="$venv/bin:$PATH" LD_LIBRARY_PATH="$site/nvidia_pytriton.libs:$libpython"
exec "$root/bin/tritonserver" --backend-directory="$root/backends" --cache-directory="$root/caches" "$@"

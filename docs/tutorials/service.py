# %% [markdown]
# # From training to a service
#
# Train a model, export it, answer over HTTP, and tell the service what people do. All of it from the command line, on
# MovieLens-100k, which comes with RecBole.

# %% [markdown]
# ## Train and export
#
# `refit` trains on the validation part too, for a given number of epochs: this is the final model. A bundle is all
# that the service needs; it holds the films' titles too.

# %% language="bash"
# recbole-onebp train --model=OneBP --dataset=ml-100k --epochs=4 --refit=True --output_dir=run > log 2>&1

# %% language="bash"
# recbole-onebp export run bundle

# %% language="bash"
# recbole-onebp recommend bundle --users=196 --k=5

# %% [markdown]
# ## Serve
#
# `recbole-onebp serve bundle` listens on port 8000 of this machine, with a page to try it at `/` and the
# documentation at `/docs`. Here it runs beside the notebook, on a free port.

# %%
import json
import subprocess
from urllib.request import Request, urlopen

service = subprocess.Popen(["recbole-onebp", "serve", "bundle", "--port=0"], stdout=subprocess.PIPE, text=True)
ready = service.stdout.readline()
url = ready.split()[-1]
ready


# %%
def post(path: str, **body: object) -> dict:
    """The answer to a request."""
    request = Request(url + path, json.dumps(body).encode(), {"Content-Type": "application/json"})
    return json.load(urlopen(request))


before = post("/recommend", users=["196"], k=5)
before

# %% [markdown]
# ## Events
#
# User 196 has just watched the first of these films. The event is on the disk before it is acknowledged, and moves
# its user at once: the film is gone, and the list is another one. Give each event an `id`: sent again, it counts
# once.

# %%
watched = before["lists"][0]["items"][0]["item"]
event = {"user": "196", "item": watched, "id": "view 1"}
post("/events", events=[event]), post("/events", events=[event])

# %%
post("/recommend", users=["196"], k=5)

# %% [markdown]
# ## Look after it
#
# `/health` and `/ready` are for the load balancer, `/metrics` is for Prometheus. A new bundle is loaded by `/reload`,
# or with `--watch=60`, without losing a request.

# %%
lines = urlopen(url + "/metrics").read().decode().splitlines()
[line for line in lines if not line.startswith("#")][:8]

# %%
service.terminate()
_ = service.wait()

# %% [markdown]
# More: [the endpoints, limits and guarantees](../serving.md#the-service), [lists for all
# users](../serving.md#lists-for-all-users), [security](../SECURITY.md).

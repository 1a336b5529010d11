"""What a cluster that `orpo-ray` starts runs for each worker, in place of Ray's script of the same name.

Ray's imports Ray to read one argument, which takes longer than all else between a call and its forked worker. This one
asks `fork_server` for a plain Python worker, and lives as long as that does; any other is Ray's own to start.

On a cluster that somebody else has started it takes the interpreter's place instead (`shell_command`): Ray's script has
run by then.
"""

import json
import os
import re
import shlex
import signal
import socket
import sys

SOCKET = "ORPO_RAY_FORK_SERVER"  # the environment variable that names a driver's server
_CONTEXT, _LANGUAGE = "--serialized-runtime-env-context", "--language"


def main() -> None:
    given, command = {_CONTEXT: "{}", _LANGUAGE: ""}, []
    for word in sys.argv[1:]:
        name, _, value = word.partition("=")
        if name in given:
            given[name] = value
        else:
            command.append(word)
    if not given[_LANGUAGE]:  # in the interpreter's place
        become_worker(os.environ.get(SOCKET, ""), command)
    context = json.loads(given[_CONTEXT] or "{}")
    plain = (
        given[_LANGUAGE] == "PYTHON"
        and _is_this_python(context.get("py_executable", sys.executable))
        and not context.get("command_prefix")
        and not context.get("override_worker_entrypoint")
    )
    if not plain:
        script = os.path.join(os.path.dirname(command[0]), "setup_worker.py")
        os.execv(sys.executable, [sys.executable, script, *sys.argv[1:]])
    for name, value in context.get("env_vars", {}).items():
        os.environ[name] = re.sub(r"\$\{[A-Z0-9_]+\}", "", os.path.expandvars(value))  # as Ray does
    become_worker(os.environ.get(SOCKET, ""), command)


def shell_command(path: str) -> str:
    """What stands for the interpreter on the command line of a worker, which Ray gives to bash: this script where the
    server at `path` is; on a node that has joined since, this interpreter where it is there too, or what is called so.
    """
    python, script, path = map(shlex.quote, (sys.executable, os.path.abspath(__file__), path))
    elsewhere = f"{{ test -x {python} && echo {python} || echo python; }}"
    return f"$(test -S {path} && echo {python} {script} || {elsewhere})"


def _is_this_python(executable: str) -> bool:
    """Whether that is the Python of the same environment, by whatever name."""
    same_folder = os.path.dirname(executable) == os.path.dirname(sys.executable)
    return same_folder and os.path.exists(executable) and os.path.samefile(executable, sys.executable)


def become_worker(path: str, command: list[str]) -> None:
    """Have the server at `path` run `command` for as long as this process lives, or run it here; never returns."""
    with open("/proc/self/oom_score_adj") as file:
        oom_score_adj = file.read().strip()
    request = {
        "command": command,
        "environment": dict(os.environ),
        "folder": os.getcwd(),
        "umask": _umask(),
        "niceness": os.getpriority(os.PRIO_PROCESS, 0),
        "blocked_signals": [int(number) for number in signal.pthread_sigmask(signal.SIG_BLOCK, [])],
        "oom_score_adj": oom_score_adj,
    }
    server = socket.socket(socket.AF_UNIX)
    try:
        server.connect(path)
        socket.send_fds(server, [b"+"], [0, 1, 2])
        server.sendall(json.dumps(request).encode() + b"\n")
        answer = server.recv(1)
    except OSError:
        answer = b""
    if not answer:
        os.execv(sys.executable, [sys.executable, *command])
    status = server.recv(16)  # comes when the worker has ended
    sys.exit(int(status) if status else 1)


def _umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask


if __name__ == "__main__":
    main()

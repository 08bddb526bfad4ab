"""`python -m streamchat_cli` is the `streamchat` command."""

from streamchat_cli.main import app

if __name__ == "__main__":
    app(prog_name="streamchat")

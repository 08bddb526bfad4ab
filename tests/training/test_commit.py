import subprocess

from streamchat_hf.training import commit


def test_it_is_what_git_says_of_the_code_and_nothing_outside_a_checkout(tmp_path, monkeypatch):
    for module, expected in ((tmp_path / "a.py", None), (tmp_path / "checkout" / "a.py", "v1-dirty")):
        module.parent.mkdir(exist_ok=True)
        module.write_text("one")
        if expected:
            git = ("git", "-C", module.parent, "-c", "user.name=x", "-c", "user.email=x@example.com")
            for words in (("init", "-q"), ("add", "."), ("commit", "-qm", "x"), ("tag", "-a", "v1", "-m", "v1")):
                subprocess.run([*git, *words], check=True)
            module.write_text("two")
        monkeypatch.setattr(commit, "__file__", str(module))
        assert commit.code_commit() == expected

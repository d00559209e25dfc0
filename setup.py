"""Packaging of openrlhf_maestro. The package itself is not imported here."""

from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).resolve().parent

# What the plain packages need, on whatever build of torch is there already. No Ray, vLLM, DeepSpeed or OpenRLHF.
PLAIN = [
    "datasets>=3.0",
    "fastapi>=0.110",
    "httpx>=0.27",
    "huggingface-hub>=1.28.0",
    "jinja2>=3.1",
    "markupsafe>=2.1",
    "matplotlib>=3.8",
    "numpy>=1.26",
    "openai>=2.0.0",
    "psutil>=5.9",
    "pyarrow>=15",
    "pydantic>=2.7",
    "pydantic-core",
    "pydantic-settings>=2.3",
    "pyyaml>=6.0",
    "rich>=13.7",
    "sacrebleu>=2.4",
    "safetensors>=0.6.2",
    "scipy>=1.11",
    "statsmodels>=0.14",
    "tenacity>=8.3",
    "tokenizers>=0.21.1",
    "torch>=2.8",
    "transformers>=5.10",
    "uvicorn>=0.30",
]

# The training stack on CUDA; requirements.txt holds the same pins, requirements-cpu*.txt the CPU builds of them.
CUDA = [
    "torch==2.13.0",
    "ray[default]==2.55.0",
    "deepspeed==0.19.6",
    "transformers==5.15.0",
    "openrlhf[vllm]==0.11.2",
    "vllm==0.29.0",
    "flash-attn==2.8.3",
    "tensorboard==2.21.0",
    "wandb==0.31.0",
]

DEV = [
    "duckdb>=1.1",
    "hypothesis>=6.100",
    "import-linter>=2.5",
    "mypy>=1.15",
    "playwright>=1.49",
    "pytest>=8.2",
    "pytest-timeout>=2.3",
    "ruff>=0.12",
    "trl==1.16.0",
    "types-PyYAML",
]

setup(
    name="openrlhf_maestro",
    version="0.1.0",
    description="MAESTRO on OpenRLHF: GRPO with several rewards and a learned Conductor that weighs them",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author="openrlhf_maestro contributors",
    license="Apache-2.0",
    license_files=["LICENSE"],
    keywords=["reinforcement learning", "language models", "GRPO", "multi-objective", "reward"],
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
    packages=find_packages(include=["openrlhf_maestro", "openrlhf_maestro.*"]),
    package_data={
        "openrlhf_maestro": ["py.typed"],
        "openrlhf_maestro.data": ["templates/*.txt"],
        "openrlhf_maestro.report": ["templates/*.j2", "templates/*.js"],
    },
    python_requires=">=3.10,<3.13",
    install_requires=PLAIN,
    extras_require={"cuda": CUDA, "dev": DEV},
    entry_points={"console_scripts": ["maestro=openrlhf_maestro.cli.main:main"]},
    zip_safe=False,
)

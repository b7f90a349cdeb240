"Build lotterybook from the metadata in settings.ini."
from configparser import ConfigParser
from pathlib import Path
from setuptools import find_packages, setup
from setuptools.command.sdist import sdist

root = Path(__file__).parent
ini = ConfigParser(delimiters=['='])
ini.read(root/'settings.ini', encoding='utf-8')
cfg = ini['DEFAULT']
readme = root/'README.md'

def lines(key): return [o.strip() for o in cfg[key].splitlines() if o.strip()]

class SdistWithSettings(sdist):
    "A source distribution that carries settings.ini, without which this file cannot run."
    def make_release_tree(self, base_dir, files):
        super().make_release_tree(base_dir, [*files, 'settings.ini'])

setup(
    name=cfg['lib_name'], version=cfg['version'], description=cfg['description'], keywords=cfg['keywords'],
    author=cfg['author'], license_expression={'apache2': 'Apache-2.0'}[cfg['license']],
    long_description=readme.read_text(encoding='utf-8'), long_description_content_type='text/markdown',
    # The notebooks travel in the wheel as lotterybook/nbs, so `lotterybook run` works without a clone.
    packages=[*find_packages(include=['lotterybook', 'lotterybook.*']), 'lotterybook.nbs'],
    package_dir={'lotterybook.nbs': 'nbs'},
    package_data={'lotterybook': ['py.typed', '__init__.pyi', '**/*.safetensors'],
                  'lotterybook.nbs': ['**/*.ipynb', '**/full.yaml'] + [f'**/results/**/*.{o}' for o in ('csv', 'json', 'png')]},
    exclude_package_data={'lotterybook.nbs': ['**/results/*/quick*']},
    install_requires=lines('requirements'),
    extras_require={key.removesuffix('_requirements'): lines(key) for key in cfg if key.endswith('_requirements')},
    entry_points={'console_scripts': ['lotterybook=lotterybook.tools.command_line:main']},
    classifiers=[f"Intended Audience :: {cfg['audience']}", 'Programming Language :: Python :: 3 :: Only',
                 *(f'Programming Language :: Python :: {o}' for o in cfg['pythons'].split())],
    cmdclass={'sdist': SdistWithSettings},
)

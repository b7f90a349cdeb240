"Checksums within files: edited JSON, a name that is taken."
import pytest
from lotterybook.foundations.checksums import read_checked_json, write_checked_json

def test_an_edited_file_is_refused(tmp_path):
    file = write_checked_json(tmp_path/'settings.json', dict(lr=.1, steps=1000))
    assert read_checked_json(file, 'run it again') == dict(lr=.1, steps=1000)
    file.write_text(file.read_text().replace('1000', '3000'))
    with pytest.raises(ValueError, match='settings.json is damaged: it was changed after it was written; run it again'):
        read_checked_json(file, 'run it again')

def test_the_name_of_the_checksum_is_taken(tmp_path):
    with pytest.raises(ValueError, match='file_sha256 is the name of the checksum'):
        write_checked_json(tmp_path/'a.json', dict(file_sha256=1))

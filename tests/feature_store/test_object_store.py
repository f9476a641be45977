"""Stores in buckets of real server processes: S3, Google Cloud Storage, Azure."""

import builtins
import itertools

import pytest
from object_store_contract import ObjectStoreContract

from feature_store import (
    FeatureStoreError,
    ObjectStorage,
    StoreInputError,
    StoreNotFoundError,
    open_store,
)
from tests.buckets.azure import find_azurite, running_azure
from tests.buckets.gcs import find_testbench, running_gcs, running_testbench

pytest.importorskip("obstore", reason="needs the extra objectstore")

_numbers = itertools.count()


@pytest.fixture(scope="session")
def gcs():
    pytest.importorskip("moto", reason="needs the extra dev")
    with running_gcs() as service:
        service.make_bucket("bucket")
        yield service


@pytest.fixture(scope="session")
def testbench():
    python = find_testbench()
    if python is None:
        pytest.skip("needs Google's testbench, named by SVP_GCS_TESTBENCH")
    with running_testbench(python) as service:
        service.make_bucket("bucket")
        yield service


@pytest.fixture(scope="session")
def azure():
    command = find_azurite()
    if command is None:
        pytest.skip("needs Azurite, named by SVP_AZURITE or on the PATH")
    with running_azure(command) as service:
        service.make_bucket("bucket")
        yield service


class TestS3(ObjectStoreContract):
    @pytest.fixture
    def service(self, s3):
        s3.make_bucket("bucket")
        s3.reset()
        return s3

    @pytest.fixture
    def url(self, service):
        return f"s3://bucket/some/prefix-{next(_numbers)}"

    def test_a_conflict_that_leaves_nothing_is_tried_again(self, url, service):
        storage = ObjectStorage(url)
        storage.create("first", b"")
        conflicts = iter([409, 409])
        service.misbehave = lambda method, *_: next(conflicts, None) if method == "PUT" else None
        assert storage.create("x", b"content")
        assert storage.get("x") == b"content"

    def test_a_service_without_conditional_writes_is_refused(self, url, service):
        def ignore(method, path, headers):
            for name in [name for name in headers if name.lower() == "if-none-match"]:
                del headers[name]

        service.misbehave = ignore
        with pytest.raises(FeatureStoreError, match=r"If-None-Match.*created an object twice"):
            open_store(url, create=True)
        service.misbehave = lambda method, *_: 501 if method == "PUT" else None
        with pytest.raises(FeatureStoreError, match=r"If-None-Match.*does not know"):
            open_store(url, create=True)
        service.reset()
        with pytest.raises(StoreNotFoundError):
            open_store(url)
        open_store(url, create=True)


class TestGoogle(ObjectStoreContract):
    @pytest.fixture
    def service(self, gcs, monkeypatch):
        with gcs.in_use(monkeypatch) as service:
            yield service

    @pytest.fixture
    def url(self, service):
        return f"gs://bucket/some/prefix-{next(_numbers)}"


class TestGoogleTestbench(TestGoogle):
    @pytest.fixture
    def service(self, testbench, monkeypatch):
        with testbench.in_use(monkeypatch) as service:
            yield service


class TestAzure(ObjectStoreContract):
    @pytest.fixture
    def service(self, azure, monkeypatch):
        with azure.in_use(monkeypatch) as service:
            yield service

    @pytest.fixture
    def url(self, service):
        return f"az://bucket/some/prefix-{next(_numbers)}"


def test_urls_are_checked():
    for url in ("s3://", "s3:///x", "s3://bucket/a/../b", "s3://bucket/a?x=1", "gs://b//c"):
        with pytest.raises(FeatureStoreError, match="must be named as s3://"):
            ObjectStorage(url)


def test_other_services_are_known(monkeypatch):
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "account")
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", "a2V5")
    assert ObjectStorage("gs://bucket/a/b/").url == "gs://bucket/a/b"
    assert ObjectStorage("az://container").url == "az://container"
    monkeypatch.delenv("AZURE_STORAGE_ACCOUNT_NAME")
    with pytest.raises(StoreInputError, match=r"Account must be specified.*AZURE_STORAGE_ACC"):
        ObjectStorage("az://container")
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", "/nowhere.json")
    with pytest.raises(StoreInputError, match=r"nowhere\.json.*GOOGLE_APPLICATION_CREDENTIALS"):
        ObjectStorage("gs://bucket")


def test_the_missing_package_is_named(monkeypatch):
    real = builtins.__import__

    def refuse(name, *arguments, **options):
        if name.split(".")[0] == "obstore":
            raise ImportError(name)
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(FeatureStoreError, match=r"svp\[objectstore\]"):
        open_store("s3://bucket/store")

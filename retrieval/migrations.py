"""The database's migrations: every statement that brought the schema where it is, in order.

Append-only: entry n brings the schema from version n to n + 1, in one transaction. Never edit a released one. Does not
know how they are applied; database.py does.
"""

MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        """CREATE TABLE stores (
            id INTEGER PRIMARY KEY AUTOINCREMENT,
            name TEXT NOT NULL UNIQUE,
            embedder TEXT NOT NULL,
            dimension INTEGER NOT NULL,
            embedder_sha256 TEXT NOT NULL,
            generation INTEGER NOT NULL DEFAULT 0,
            created_at INTEGER NOT NULL
        )""",
        """CREATE TABLE documents (
            id INTEGER PRIMARY KEY AUTOINCREMENT,
            store_id INTEGER NOT NULL REFERENCES stores (id) ON DELETE CASCADE,
            name TEXT NOT NULL,
            sha256 TEXT NOT NULL,
            recipe TEXT NOT NULL,
            size_bytes INTEGER NOT NULL,
            status TEXT NOT NULL CHECK (status IN ('completed', 'failed')),
            error_code TEXT,
            error TEXT,
            text TEXT NOT NULL,
            updated_at INTEGER NOT NULL,
            UNIQUE (store_id, name)
        )""",
        """CREATE TABLE chunks (
            id INTEGER PRIMARY KEY AUTOINCREMENT,
            store_id INTEGER NOT NULL REFERENCES stores (id) ON DELETE CASCADE,
            document_id INTEGER NOT NULL REFERENCES documents (id) ON DELETE CASCADE,
            ordinal INTEGER NOT NULL,
            start_offset INTEGER NOT NULL,
            end_offset INTEGER NOT NULL,
            page INTEGER,
            heading TEXT,
            text TEXT NOT NULL,
            sha256 TEXT NOT NULL,
            embeddings BLOB NOT NULL,
            UNIQUE (document_id, ordinal)
        )""",
        "CREATE INDEX chunks_by_store ON chunks (store_id, id)",
    ),
    (  # stamps of files, documents that are being made, and chunks found by what they say
        "ALTER TABLE documents ADD COLUMN modified_ns INTEGER NOT NULL DEFAULT 0",
        "ALTER TABLE documents ADD COLUMN inode INTEGER NOT NULL DEFAULT 0",
        """ALTER TABLE documents ADD COLUMN state TEXT NOT NULL DEFAULT 'completed'
            CHECK (state IN ('in_progress', 'completed', 'failed'))""",
        "UPDATE documents SET state = status",
        "ALTER TABLE documents DROP COLUMN status",
        "ALTER TABLE documents RENAME COLUMN state TO status",
        """CREATE INDEX documents_by_status ON documents
            (store_id, status, name, sha256, recipe, size_bytes, modified_ns, inode)""",
        "CREATE INDEX chunks_by_hash ON chunks (store_id, sha256)",
    ),
    (  # attributes: what documents state, what people set (JSON), and from both the rows that filters read
        "ALTER TABLE documents ADD COLUMN stated_attributes TEXT NOT NULL DEFAULT '{}'",
        "ALTER TABLE documents ADD COLUMN set_attributes TEXT NOT NULL DEFAULT '{}'",
        """CREATE TABLE attributes (
            document_id INTEGER NOT NULL REFERENCES documents (id) ON DELETE CASCADE,
            store_id INTEGER NOT NULL REFERENCES stores (id) ON DELETE CASCADE,
            key TEXT NOT NULL,
            kind TEXT NOT NULL CHECK (kind IN ('text', 'number', 'bool')),
            text TEXT,
            number REAL,
            PRIMARY KEY (document_id, key)
        )""",
        "CREATE INDEX attributes_by_text ON attributes (store_id, key, kind, text)",
        "CREATE INDEX attributes_by_number ON attributes (store_id, key, kind, number)",
    ),
    (  # what a chunk is held against when it is read; NULL in rows that an earlier Loam wrote
        "ALTER TABLE chunks ADD COLUMN embeddings_sha256 TEXT",
        "ALTER TABLE chunks ADD COLUMN seal TEXT",
    ),
    (  # uploaded files; their bytes lie in files/<id>
        """CREATE TABLE files (
            id TEXT PRIMARY KEY,
            owner TEXT NOT NULL,
            name TEXT NOT NULL,
            purpose TEXT NOT NULL,
            size_bytes INTEGER NOT NULL,
            sha256 TEXT NOT NULL,
            created_at INTEGER NOT NULL
        )""",
        "CREATE INDEX files_by_owner ON files (owner, created_at, id)",
    ),
    (  # the generation of a store's last deletion: snapshots below it hold something that must be gone
        "ALTER TABLE stores ADD COLUMN erased_generation INTEGER NOT NULL DEFAULT 0",
        "UPDATE stores SET erased_generation = generation",
    ),
    (  # deletions whose traces are still to be removed from the database's own pages
        "CREATE TABLE erasures (id INTEGER PRIMARY KEY AUTOINCREMENT, store_id INTEGER NOT NULL)",
    ),
    (  # vectors of another embedder, until a store has them all
        """CREATE TABLE reembeddings (
            store_id INTEGER PRIMARY KEY REFERENCES stores (id) ON DELETE CASCADE,
            embedder_sha256 TEXT NOT NULL
        )""",
        """CREATE TABLE coming_embeddings (
            chunk_id INTEGER PRIMARY KEY REFERENCES chunks (id) ON DELETE CASCADE,
            embeddings BLOB NOT NULL,
            embeddings_sha256 TEXT NOT NULL,
            seal TEXT NOT NULL
        )""",
    ),
    (  # what a store is searched with where tuning has settled it, as JSON
        "ALTER TABLE stores ADD COLUMN tuned TEXT",
    ),
    (  # vectors of a chunk's short stretches; NULL in rows that an earlier Loam wrote
        "ALTER TABLE chunks ADD COLUMN spans BLOB",
        "ALTER TABLE coming_embeddings ADD COLUMN spans BLOB",
    ),
    (  # the gateway's keys, each as its SHA-256
        """CREATE TABLE keys (
            id TEXT PRIMARY KEY,
            owner TEXT NOT NULL,
            sha256 TEXT NOT NULL,
            is_admin INTEGER NOT NULL,
            created_at INTEGER NOT NULL,
            revoked_at INTEGER
        )""",
    ),
    (  # uploads that end by themselves, Unix seconds
        "ALTER TABLE files ADD COLUMN expires_at INTEGER",
    ),
    (  # what the API adds to stores, and the files that were attached to them; a store without a row is `local`'s
        """CREATE TABLE vector_stores (
            store_id INTEGER PRIMARY KEY REFERENCES stores (id) ON DELETE CASCADE,
            owner TEXT NOT NULL,
            title TEXT NOT NULL DEFAULT '',
            description TEXT,
            metadata TEXT,
            expires_after_days INTEGER,
            last_active_at INTEGER NOT NULL
        )""",
        "CREATE INDEX vector_stores_by_owner ON vector_stores (owner)",
        """CREATE TABLE vector_store_files (
            number INTEGER PRIMARY KEY AUTOINCREMENT,
            store_id INTEGER NOT NULL REFERENCES stores (id) ON DELETE CASCADE,
            file_id TEXT NOT NULL,
            document TEXT NOT NULL,
            status TEXT NOT NULL
                CHECK (status IN ('in_progress', 'completed', 'failed', 'cancelled', 'deleted')),
            batch_id TEXT,
            error_code TEXT,
            error TEXT,
            attributes TEXT NOT NULL,
            max_tokens INTEGER NOT NULL,
            overlap_tokens INTEGER NOT NULL,
            created_at INTEGER NOT NULL,
            UNIQUE (store_id, file_id),
            UNIQUE (store_id, document)
        )""",
        "CREATE INDEX vector_store_files_by_status ON vector_store_files (status, number)",
        "CREATE INDEX vector_store_files_by_file ON vector_store_files (file_id)",
        """CREATE TABLE file_batches (
            id TEXT PRIMARY KEY,
            store_id INTEGER NOT NULL REFERENCES stores (id) ON DELETE CASCADE,
            is_cancelled INTEGER NOT NULL DEFAULT 0,
            created_at INTEGER NOT NULL
        )""",
    ),
    (  # what people said of answers, and the passages that they name (JSON)
        """CREATE TABLE feedback (
            number INTEGER PRIMARY KEY AUTOINCREMENT,
            id TEXT NOT NULL UNIQUE,
            owner TEXT NOT NULL,
            created_at INTEGER NOT NULL,
            rating TEXT NOT NULL CHECK (rating IN ('up', 'down')),
            model TEXT NOT NULL,
            question TEXT NOT NULL,
            answer TEXT NOT NULL,
            comment TEXT,
            expected TEXT,
            passages TEXT NOT NULL
        )""",
        "CREATE INDEX feedback_by_owner ON feedback (owner, number)",
    ),
    (  # fine-tuning jobs, who runs each, what the gateway says about them, and the models that came of them
        """CREATE TABLE fine_tuning_jobs (
            number INTEGER PRIMARY KEY AUTOINCREMENT,
            id TEXT NOT NULL UNIQUE,
            owner TEXT NOT NULL,
            model TEXT NOT NULL,
            suffix TEXT,
            seed INTEGER NOT NULL,
            training_file TEXT NOT NULL,
            validation_file TEXT,
            method TEXT NOT NULL CHECK (method IN ('supervised', 'dpo')),
            hyperparameters TEXT NOT NULL,
            options TEXT NOT NULL,
            metadata TEXT,
            arguments TEXT,
            total_steps INTEGER,
            status TEXT NOT NULL
                CHECK (status IN ('validating_files', 'queued', 'running', 'succeeded', 'failed', 'cancelled')),
            is_cancelling INTEGER NOT NULL DEFAULT 0,
            is_paused INTEGER NOT NULL DEFAULT 0,
            error TEXT,
            fine_tuned_model TEXT,
            result_file TEXT,
            trained_tokens INTEGER,
            created_at INTEGER NOT NULL,
            started_at INTEGER,
            finished_at INTEGER
        )""",
        "CREATE INDEX fine_tuning_jobs_by_owner ON fine_tuning_jobs (owner, number)",
        "CREATE INDEX fine_tuning_jobs_by_status ON fine_tuning_jobs (status, number)",
        """CREATE TABLE job_leases (
            job_id TEXT PRIMARY KEY REFERENCES fine_tuning_jobs (id) ON DELETE CASCADE,
            pid INTEGER NOT NULL,
            started_ticks INTEGER NOT NULL,
            boot_id TEXT NOT NULL
        )""",
        """CREATE TABLE job_messages (
            number INTEGER PRIMARY KEY AUTOINCREMENT,
            job_id TEXT NOT NULL REFERENCES fine_tuning_jobs (id) ON DELETE CASCADE,
            created_at REAL NOT NULL,
            level TEXT NOT NULL CHECK (level IN ('info', 'warn', 'error')),
            message TEXT NOT NULL
        )""",
        "CREATE INDEX job_messages_by_job ON job_messages (job_id, number)",
        """CREATE TABLE fine_tuned_models (
            name TEXT PRIMARY KEY,
            owner TEXT NOT NULL,
            job_id TEXT NOT NULL REFERENCES fine_tuning_jobs (id) ON DELETE CASCADE,
            step INTEGER,
            folder TEXT NOT NULL,
            created_at INTEGER NOT NULL,
            is_retired INTEGER NOT NULL DEFAULT 0
        )""",
        "CREATE INDEX fine_tuned_models_by_job ON fine_tuned_models (job_id, step)",
    ),
    (  # answers to POSTs that carried an Idempotency-Key, for a day
        """CREATE TABLE idempotency_keys (
            owner TEXT NOT NULL,
            key TEXT NOT NULL,
            content_sha256 TEXT NOT NULL,
            status INTEGER,
            body BLOB,
            created_at INTEGER NOT NULL,
            PRIMARY KEY (owner, key)
        )""",
        "CREATE INDEX idempotency_keys_by_age ON idempotency_keys (created_at)",
    ),
    (  # what /v1/responses answered, so that a conversation can go on from it
        """CREATE TABLE responses (
            id TEXT PRIMARY KEY,
            owner TEXT NOT NULL,
            previous_id TEXT,
            created_at INTEGER NOT NULL,
            body TEXT NOT NULL,
            items TEXT NOT NULL
        )""",
        "CREATE INDEX responses_by_time ON responses (created_at)",
        "CREATE INDEX responses_by_previous ON responses (previous_id)",
    ),
    (  # what a document is held against when it is read; NULL in rows that an earlier Loam wrote
        "ALTER TABLE documents ADD COLUMN text_sha256 TEXT",
        "ALTER TABLE documents ADD COLUMN seal TEXT",
    ),
    (  # names that owners have given to models: aliases, and assistants with their settings (JSON)
        """CREATE TABLE named_models (
            number INTEGER PRIMARY KEY AUTOINCREMENT,
            owner TEXT NOT NULL,
            name TEXT NOT NULL,
            kind TEXT NOT NULL CHECK (kind IN ('alias', 'assistant')),
            model TEXT NOT NULL,
            settings TEXT,
            created_at INTEGER NOT NULL,
            UNIQUE (owner, name)
        )""",
    ),
    (  # what a store's words are stemmed as
        "ALTER TABLE stores ADD COLUMN language TEXT NOT NULL DEFAULT 'english'",
    ),
    (  # what an attached file's row is held against; NULL in rows that an earlier Loam wrote
        "ALTER TABLE vector_store_files ADD COLUMN seal TEXT",
    ),
    (  # what the gateway said about a job, read by pages
        "DROP INDEX job_messages_by_job",
        "CREATE INDEX job_messages_by_time ON job_messages (job_id, created_at, number)",
    ),
    (  # lists of a store's files, read by pages: place is the order within a second; is_attached is 1 for what a worker
        # of the gateway has made of an attached file, 0 for documents of the command line
        "ALTER TABLE vector_store_files ADD COLUMN place INTEGER GENERATED ALWAYS AS (number) VIRTUAL",
        "CREATE INDEX vector_store_files_by_time ON vector_store_files (store_id, created_at, place)",
        """CREATE INDEX vector_store_files_by_status_and_time ON vector_store_files
            (store_id, status, created_at, place)""",
        """CREATE INDEX vector_store_files_by_batch ON vector_store_files
            (store_id, batch_id, created_at, place, status)""",
        "ALTER TABLE documents ADD COLUMN place INTEGER GENERATED ALWAYS AS (-id) VIRTUAL",
        "ALTER TABLE documents ADD COLUMN is_attached INTEGER NOT NULL DEFAULT 0",
        """UPDATE documents SET is_attached = 1 WHERE EXISTS (SELECT 1 FROM vector_store_files f
            WHERE f.store_id = documents.store_id AND f.document = documents.name)""",
        "CREATE INDEX documents_by_time ON documents (store_id, updated_at, place) WHERE is_attached = 0",
        """CREATE INDEX documents_by_status_and_time ON documents
            (store_id, status, updated_at, place) WHERE is_attached = 0""",
    ),
    (  # where deleted things stood in their lists, for an hour
        """CREATE TABLE departures (
            listing TEXT NOT NULL,
            id TEXT NOT NULL,
            created_at INTEGER NOT NULL,
            place INTEGER NOT NULL,
            departed_at INTEGER NOT NULL,
            PRIMARY KEY (listing, id)
        )""",
        "CREATE INDEX departures_by_age ON departures (departed_at)",
    ),
)

-- The roles and the database of the gateway, created by the first start of the container `postgres`: docs/operators.md.
\set ON_ERROR_STOP on
\set owner_password `cat /run/secrets/gateway_owner_password`
\set password `cat /run/secrets/gateway_password`
CREATE ROLE gateway_app NOLOGIN;
CREATE ROLE gateway_relay NOLOGIN;
CREATE ROLE gateway_owner LOGIN PASSWORD :'owner_password';
CREATE ROLE gateway LOGIN PASSWORD :'password';
GRANT gateway_app, gateway_relay TO gateway;
CREATE DATABASE gateway OWNER gateway_owner;
-- Otherwise PostgreSQL logs refused rows and the arguments of failed statements, which contain clinical text.
ALTER ROLE gateway SET log_error_verbosity = 'terse';
ALTER ROLE gateway SET log_min_error_statement = 'panic';
ALTER ROLE gateway SET log_parameter_max_length = 0;
ALTER ROLE gateway SET log_parameter_max_length_on_error = 0;

-- Writes a Celery state that is not the last, unless the last is there.
--
-- KEYS[1]  celery-task-meta-<id>  string  written, and published to whoever waits for it
-- ARGV     the state's JSON, seconds that it lives or 0
local held = redis.call('GET', KEYS[1])
local state = held and string.match(held, '^{"status": "(%u+)"')
if state == 'SUCCESS' or state == 'FAILURE' or state == 'REVOKED' then return 0 end
if tonumber(ARGV[2]) > 0 then
  redis.call('SET', KEYS[1], ARGV[1], 'EX', ARGV[2])
else
  redis.call('SET', KEYS[1], ARGV[1])
end
redis.call('PUBLISH', KEYS[1], ARGV[1])
return 1
